"""Tokens to text, token by token: a character comes out when all its bytes are there.

One object per answer, fed by its stream of events. What it gives out adds up to the decoding of the
whole answer, with special tokens left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

# Enough tokens of the prompt for any character that reaches over its end.
_CONTEXT_TOKENS = 8


class Detokenizer:
    """Decodes one answer as it grows."""

    __slots__ = ("_context", "_emitted_chars", "_fast", "_held", "_ids", "_stream")

    def __init__(self, fast: FastTokenizer, prompt: Sequence[int] = ()) -> None:
        """`prompt` makes the text go on where it ends (a leading space stays); empty: a fresh text."""
        self._fast = fast
        self._context = _clean_context(fast, prompt)
        self._ids: list[int] = []
        self._emitted_chars = 0
        self._held = False
        self._stream = DecodeStream(self._context, True) if self._context else DecodeStream(None, True)

    def feed(self, token_id: int) -> str:
        """Text that the token completes; "" while a character is incomplete."""
        self._ids.append(token_id)
        try:
            text = self._stream.step(self._fast, token_id)
        except Exception:
            # The library gives up on byte sequences that no text has; the whole answer still decodes.
            return self._restart()
        if text is None:
            self._held = True
            return ""
        self._held = False
        self._emitted_chars += len(text)
        return text

    def finish(self) -> str:
        """What is still held back: an incomplete character comes out as U+FFFD."""
        if not self._held:
            return ""
        self._held = False
        rest = self._whole()[self._emitted_chars :]
        self._emitted_chars += len(rest)
        return rest

    def _restart(self) -> str:
        whole = self._whole()
        rest = whole[self._emitted_chars :]
        self._emitted_chars = len(whole)
        self._held = False
        self._stream = DecodeStream(None, True)
        return rest

    def _whole(self) -> str:
        before = self._fast.decode(self._context, skip_special_tokens=True) if self._context else ""
        return str(self._fast.decode([*self._context, *self._ids], skip_special_tokens=True)[len(before) :])


def _clean_context(fast: FastTokenizer, prompt: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, or none where they end inside a character."""
    context = list(prompt[-_CONTEXT_TOKENS:])
    if not context:
        return []
    text = fast.decode(context, skip_special_tokens=True)
    return [] if text.endswith("�") or not text else context
