"""Bytes of OpenAI responses: whole answers, and the server-sent events of a stream.

A stream's events differ from token to token in their text alone, so everything around it is made once
per request: a token costs one JSON string and two joins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from twolane.core.request import FinishReason, Usage
from twolane.router.answer_text import PlacedLogprob
from twolane.router.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


class Format(Protocol):
    """Writes one endpoint's responses."""

    def first(self, index: int) -> bytes:
        """Event before the first text of an answer."""
        ...

    def piece(self, index: int, text: str, logprobs: Sequence[PlacedLogprob]) -> bytes:
        """Event with new text."""
        ...

    def last(self, index: int, reason: FinishReason) -> bytes:
        """Event at the end of an answer."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """Event with the token counts, after all answers."""
        ...

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """Body of a response that is not a stream."""
        ...


class WholeChoice:
    """One answer that is collected until its end."""

    __slots__ = ("finish", "logprobs", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[PlacedLogprob] = []
        self.finish = FinishReason.STOP


class _Format:
    """What both endpoints share."""

    def __init__(self, kind: str, names: tuple[str, str, str], tokenizer: Tokenizer) -> None:
        """`names`: the request's id, the model, the system fingerprint."""
        request_id, model, fingerprint = names
        self._tokenizer = tokenizer
        self._head: dict[str, Any] = {
            "id": request_id,
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._null_usage = b""
        self._opens: dict[int, bytes] = {}

    def stream(self, *, announce_usage: bool) -> None:
        """Writes events; `announce_usage`: each says that the counts are still to come, as OpenAI does."""
        if self._head["object"] == "chat.completion":
            self._head["object"] = "chat.completion.chunk"
        self._null_usage = b',"usage":null' if announce_usage else b""

    def usage(self, usage: Usage) -> bytes:
        """See Format."""
        return b"data: " + orjson.dumps(self._head | {"choices": [], "usage": usage_fields(usage)}) + b"\n\n"

    def _event(self, choice: dict[str, Any]) -> bytes:
        event = orjson.dumps(self._head | {"choices": [choice]})
        return b"data: " + event[:-1] + self._null_usage + b"}\n\n"

    def _open(self, index: int, before_text: bytes) -> bytes:
        """Everything of an event up to its text."""
        known = self._opens.get(index)
        if known is None:
            head = orjson.dumps(self._head)[:-1]
            known = b'data: %b,"choices":[{"index":%d,%b' % (head, index, before_text)
            self._opens[index] = known
        return known

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


class ChatFormat(_Format):
    """Responses of /v1/chat/completions."""

    def first(self, index: int) -> bytes:
        """See Format: OpenAI names the role before the text."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._event({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})

    def piece(self, index: int, text: str, logprobs: Sequence[PlacedLogprob]) -> bytes:
        """See Format."""
        if logprobs:
            fields = {"index": index, "delta": {"content": text}, "logprobs": self._logprobs(logprobs)}
            return self._event(fields | {"finish_reason": None})
        after = b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % self._null_usage
        return self._open(index, b'"delta":{"content":') + orjson.dumps(text) + after

    def last(self, index: int, reason: FinishReason) -> bytes:
        """See Format."""
        return self._event({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason.value})

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """See Format."""
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
                "logprobs": self._logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish.value,
            }
            for index, choice in enumerate(choices)
        ]
        return orjson.dumps(self._head | {"choices": listed, "usage": usage_fields(usage)})

    def _logprobs(self, placed: Sequence[PlacedLogprob]) -> dict[str, Any]:
        content = []
        for _, entry in placed:
            top = [self._entry(other.token_id, other.logprob) for other in entry.top]
            content.append(self._entry(entry.token_id, entry.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": self._token_text(token_id), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionFormat(_Format):
    """Responses of /v1/completions."""

    def first(self, index: int) -> bytes:
        """See Format: nothing comes before the text."""
        del index
        return b""

    def piece(self, index: int, text: str, logprobs: Sequence[PlacedLogprob]) -> bytes:
        """See Format."""
        if logprobs:
            fields = {"index": index, "text": text, "logprobs": self._logprobs(logprobs)}
            return self._event(fields | {"finish_reason": None})
        after = b',"logprobs":null,"finish_reason":null}]%b}\n\n' % self._null_usage
        return self._open(index, b'"text":') + orjson.dumps(text) + after

    def last(self, index: int, reason: FinishReason) -> bytes:
        """See Format."""
        return self._event({"index": index, "text": "", "logprobs": None, "finish_reason": reason.value})

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """See Format."""
        listed = [
            {
                "index": index,
                "text": "".join(choice.texts),
                "logprobs": self._logprobs(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish.value,
            }
            for index, choice in enumerate(choices)
        ]
        return orjson.dumps(self._head | {"choices": listed, "usage": usage_fields(usage)})

    def _logprobs(self, placed: Sequence[PlacedLogprob]) -> dict[str, Any]:
        tops = [
            {self._token_text(other.token_id): _finite(other.logprob) for other in entry.top}
            for _, entry in placed
        ]
        return {
            "tokens": [self._token_text(entry.token_id) for _, entry in placed],
            "token_logprobs": [_finite(entry.logprob) for _, entry in placed],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": [offset for offset, _ in placed],
        }


def usage_fields(usage: Usage) -> dict[str, Any]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _finite(logprob: float) -> float:
    # JSON has no infinity; OpenAI uses this value for tokens without probability.
    return max(logprob, -9999.0)
