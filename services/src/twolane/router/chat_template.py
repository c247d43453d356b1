"""Renders a conversation as the model was trained to see it.

The template is the model's own Jinja file, run in a sandbox under Hugging Face's conventions. What a
template refuses (roles out of order) becomes the client's error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from twolane.core.errors import ConfigError, InvalidRequest

_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents", *_TOKEN_NAMES})


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's part for training; for us its body alone counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Keeps the body in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles `source`; `special_tokens` maps names such as bos_token to their text.

        Raises:
            ConfigError: the template is malformed.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the model's chat template can't be compiled: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], extra: Mapping[str, Any] | None = None) -> str:
        """The prompt of a conversation, with the beginning of the assistant's turn at its end.

        Args:
            messages: mappings with role and content, oldest first.
            extra: further variables of the template, for example enable_thinking.

        Raises:
            InvalidRequest: the template refuses the conversation, or `extra` takes a reserved name.
        """
        extra = extra or {}
        taken = sorted(_RESERVED & set(extra))
        if taken:
            raise InvalidRequest(f"'{taken[0]}' can't be set here", param="chat_template_kwargs")
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._special_tokens, **extra
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses the conversation: {error}", param="messages"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRequest(
                f"the model's chat template can't render the conversation ({type(error).__name__}: {error})",
                param="messages",
            ) from error


def read_chat_template(model_dir: Path) -> ChatTemplate | None:
    """The model's template from chat_template.jinja or tokenizer_config.json; None when it has none.

    Raises:
        ConfigError: a file is malformed.
    """
    config_path = model_dir / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if config_path.exists():
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{config_path} can't be read as JSON: {error}") from error
    own_file = model_dir / "chat_template.jinja"
    source = (
        own_file.read_text(encoding="utf-8") if own_file.exists() else _default(config.get("chat_template"))
    )
    return None if source is None else ChatTemplate(source, _special_tokens(config))


def _default(value: Any) -> str | None:
    # Some models name several templates; "default" is the one for plain chat.
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML characters, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # Templates put the local date into the system prompt, as transformers does.
    return datetime.now().strftime(pattern)  # noqa: DTZ005
