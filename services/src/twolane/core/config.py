"""Base of every process configuration: one frozen class per process, flags and environment derived.

A field `drain_timeout_s` of the router is `--drain-timeout-s` and TWOLANE_ROUTER_DRAIN_TIMEOUT_S;
flags win over the environment. Unknown or malformed values stop the process at its start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from twolane.core.errors import ConfigError


class ProcessConfig(BaseSettings):
    """Frozen settings of one process; subclasses set `process` and declare fields with descriptions."""

    process: ClassVar[str]
    verb: ClassVar[str] = ""
    """What stands after `twolane` on its command line; empty: the process's name."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "process" in cls.__dict__:
            prefix = f"TWOLANE_{cls.process.upper()}_"
            own = {"env_prefix": prefix, "cli_prog_name": f"twolane {cls.verb or cls.process}"}
            cls.model_config = SettingsConfigDict(**{**cls.model_config, **own})  # type: ignore[typeddict-item]

    @classmethod
    def from_args(cls, argv: Sequence[str]) -> Self:
        """Builds the configuration from flags and environment.

        Raises:
            ConfigError: a value is malformed or an environment name is unknown.
            SystemExit: --help was asked for, or a flag is unknown (status 2).
        """
        cls.refuse_unknown_environment(os.environ)
        try:
            return CliApp.run(cls, cli_args=list(argv))
        except ValidationError as error:
            raise ConfigError(cls._explain(error)) from error

    @classmethod
    def refuse_unknown_environment(cls, environment: Mapping[str, str]) -> None:
        """Raises ConfigError for a TWOLANE_<PROCESS>_ name that no field has: likely a typing error."""
        prefix = str(cls.model_config["env_prefix"])
        known = {(prefix + name).upper() for name in cls.model_fields}
        for name in environment:
            if name.upper().startswith(prefix) and name.upper() not in known:
                raise ConfigError(f"unknown environment variable {name}; known: {', '.join(sorted(known))}")

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        prefix = str(cls.model_config["env_prefix"])
        lines = []
        for item in error.errors(include_url=False, include_input=False):
            field = ".".join(str(part) for part in item["loc"])
            flag = "--" + field.replace("_", "-")
            lines.append(f"{flag} (or {prefix}{field.upper()}): {item['msg']}")
        return f"bad configuration of {cls.process}: " + "; ".join(lines)
