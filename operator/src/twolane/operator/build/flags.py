"""Flags that several processes share, written from the spec; a test gives them to the real parsers."""

from __future__ import annotations

from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.pools import Engine


def engine_flags(*engines: Engine | None) -> list[str]:
    """Flags of `twolane worker` for the options that are set; later engines go before earlier ones."""
    values: dict[str, object] = {}
    for engine in engines:
        if engine is not None:
            values |= engine.model_dump(exclude_none=True)
    return [part for name, value in values.items() for part in _written(flag(name), value)]


def _written(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    return [name, str(value)]


def flag(name: str) -> str:
    """`--max-waiting` for max_waiting."""
    return "--" + name.replace("_", "-")


def telemetry_flags(spec: ModelDeploymentSpec) -> list[str]:
    """Logging and tracing."""
    flags = ["--log-level", spec.log_level]
    if spec.tracing is not None:
        flags += ["--otlp-endpoint", spec.tracing.endpoint]
        flags += ["--otlp-sample-ratio", str(spec.tracing.sample_ratio)]
    return flags
