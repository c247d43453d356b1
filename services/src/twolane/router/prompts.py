"""What a client sends as prompt, made into tokens: conversations, texts, token ids.

REST and gRPC use it; everything unusable becomes an InvalidRequest that names the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twolane.core.errors import InvalidRequest
from twolane.router.chat_template import ChatTemplate
from twolane.router.tokenizer import Tokenizer

MAX_PROMPTS = 64
MAX_MESSAGES = 10_000

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Fields of messages that mean nothing here as long as they are empty.
_EMPTY_FIELDS = frozenset(
    {"tool_calls", "function_call", "tool_call_id", "refusal", "audio", "annotations", "reasoning_content"}
)

_MAX_NAME_CHARS = 100

Message = dict[str, str]


class PromptReader:
    """Turns prompts into tokens with the model's tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, vocab_size: int) -> None:
        """`vocab_size`: rows of the embedding; token ids lie below."""
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size

    async def chat(self, messages: Sequence[Message], extra: Mapping[str, Any] | None = None) -> list[int]:
        """Tokens of a conversation; `extra` are further variables of the chat template."""
        template = self._template
        if template is None:
            raise InvalidRequest(
                "the model has no chat template; use /v1/completions or put one into the model folder",
                param="messages",
            )

        def work() -> list[int]:
            # The template writes the special tokens itself.
            return self._tokenizer.encode(template.render(messages, extra), add_special_tokens=False)

        return _not_empty(await self._tokenizer.run(_size(messages), work), "messages")

    async def text(self, text: str, param: str = "prompt") -> list[int]:
        """Tokens of a plain text."""

        def work() -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=True)

        return _not_empty(await self._tokenizer.run(len(text), work), param)

    def tokens(self, ids: Sequence[int], param: str = "prompt") -> list[int]:
        """Token ids as they are."""
        tokens = _not_empty(list(ids), param)
        for token_id in (min(tokens), max(tokens)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"token {token_id} is not among the model's {self._vocab_size} tokens", param=param
                )
        return tokens

    async def completion(self, prompt: Any) -> list[list[int]]:
        """Prompts of a completion request: a text, token ids, or a list of either."""
        if isinstance(prompt, str):
            return [await self.text(prompt)]
        if not isinstance(prompt, list) or not prompt:
            raise InvalidRequest("prompt must be a text, token ids, or a list of either", param="prompt")
        if _all_integers(prompt):
            return [self.tokens(prompt)]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(
                f"at most {MAX_PROMPTS} prompts fit in a request, not {len(prompt)}", param="prompt"
            )
        return [await self._item(item, f"prompt[{place}]") for place, item in enumerate(prompt)]

    async def _item(self, item: Any, param: str) -> list[int]:
        if isinstance(item, str):
            return await self.text(item, param)
        if isinstance(item, list) and _all_integers(item):
            return self.tokens(item, param)
        raise InvalidRequest(f"{param} must be a text or a list of token ids", param=param)


def read_messages(value: Any) -> list[Message]:
    """Checks the messages of a chat request and reduces each to role and text.

    Raises:
        InvalidRequest: the error names the message and its field.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"at most {MAX_MESSAGES} messages fit in a request", param="messages")
    return [_message(item, f"messages[{place}]") for place, item in enumerate(value)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object with role and content", param=where)
    for full_name, value in item.items():
        name = full_name[:_MAX_NAME_CHARS]
        if name in ("role", "content", "name"):
            continue
        if name not in _EMPTY_FIELDS:
            raise InvalidRequest(f"unknown parameter: '{where}.{name}'", param=f"{where}.{name}")
        if value:
            raise InvalidRequest(
                f"'{where}.{name}' is not served here; leave it out", param=f"{where}.{name}"
            )
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise InvalidRequest(f"role must be one of {allowed}, not {role!r:.50}", param=f"{where}.role")
    return {"role": _ROLES[role], "content": _content(item.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{where} must be a text or a list of text parts", param=where)
    texts = []
    for place, part in enumerate(value):
        here = f"{where}[{place}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise InvalidRequest(
                f"only parts of type 'text' are served, not {kind!r:.50}", param=f"{here}.type"
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{here}.text must be a text", param=f"{here}.text")
        texts.append(part["text"])
    return "\n".join(texts)


def _all_integers(values: Sequence[Any]) -> bool:
    return all(type(value) is int for value in values)


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _not_empty(ids: list[int], param: str) -> list[int]:
    if not ids:
        raise InvalidRequest("the prompt is empty; at least one token is needed", param=param)
    return ids
