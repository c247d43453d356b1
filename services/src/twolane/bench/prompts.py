"""Makes prompts of the length that a load asks for, with the shared prefixes it asks for.

Contents are random but the same for the same seed. The prefix that the load calls cached is cut from
one shared sequence, so it really is in the servers' caches once a longer one has been sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from twolane.core.errors import ConfigError

Prompt = str | list[int]

_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word "
    "business issue side kind"
)
WORDS = tuple(_WORDS.split())
MIN_USABLE_TOKENS = 16


class PromptMaker(Protocol):
    """Makes the prompt of one request."""

    exact: bool
    """Whether a prompt has exactly the tokens asked for; else the server's usage field tells the truth."""

    def make(self, index: int, tokens: int, shared_tokens: int) -> Prompt:
        """Prompt of request `index`: `tokens` in all, of which the first `shared_tokens` are shared."""
        ...


class _Alphabet:
    """Sequences over `size` symbols: the shared one, and one of its own for every request."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._shared = np.empty(0, dtype=np.int64)

    def sequence(self, index: int, length: int, shared_length: int) -> list[int]:
        """Symbols of request `index`."""
        if len(self._shared) < shared_length:
            # A longer draw from the same seed begins like a shorter one.
            rng = np.random.default_rng([self._seed, 0])
            self._shared = rng.integers(0, self._size, max(shared_length, 2 * len(self._shared)))
        own = np.random.default_rng([self._seed, 1, index]).integers(0, self._size, length - shared_length)
        drawn: list[int] = np.concatenate([self._shared[:shared_length], own]).tolist()
        return drawn


class WordPrompts:
    """Common English words, about one token each for most tokenizers."""

    exact = False

    def __init__(self, seed: int) -> None:
        self._alphabet = _Alphabet(len(WORDS), seed)

    def make(self, index: int, tokens: int, shared_tokens: int) -> str:
        """As many words as tokens are asked for."""
        return " ".join(WORDS[symbol] for symbol in self._alphabet.sequence(index, tokens, shared_tokens))


class TokenIdPrompts:
    """Token ids, which /v1/completions takes as they are."""

    exact = True

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._ids = ordinary_ids(tokenizer)
        self._alphabet = _Alphabet(len(self._ids), seed)

    def make(self, index: int, tokens: int, shared_tokens: int) -> list[int]:
        """Exactly `tokens` ids, none of them special."""
        return [self._ids[symbol] for symbol in self._alphabet.sequence(index, tokens, shared_tokens)]


class TextPrompts:
    """Text that the tokenizer cuts into exactly the tokens asked for, for servers that take only text."""

    exact = True

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        """Raises ConfigError: the tokenizer has too few words that stay one token each."""
        self._tokenizer = tokenizer
        # " word" is one token, and two of them in a row stay two.
        single = [w for w in WORDS if self._count(f" {w}") == 1 and self._count(f" {w} {w}") == 2]
        if len(single) < MIN_USABLE_TOKENS:
            raise ConfigError(
                f"--prompts text: only {len(single)} of {len(WORDS)} common words are one token of this "
                "tokenizer; use --prompts token-ids"
            )
        self._words = single
        self._alphabet = _Alphabet(len(single), seed)

    def make(self, index: int, tokens: int, shared_tokens: int) -> str:
        """Exactly `tokens` tokens; raises ConfigError should the tokenizer join words after all."""
        symbols = self._alphabet.sequence(index, tokens, shared_tokens)
        text = "".join(f" {self._words[symbol]}" for symbol in symbols)
        if self._count(text) != tokens:
            raise ConfigError("--prompts text: this tokenizer joins words; use --prompts token-ids")
        return text

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand for text, in order: no special or added token."""
    added: Sequence[int] = tuple(tokenizer.get_added_tokens_decoder())
    return sorted(set(tokenizer.get_vocab().values()) - set(added))


def prompt_maker(kind: str, model_dir: Path | None, seed: int) -> PromptMaker:
    """The maker for a --prompts value.

    Raises:
        ConfigError: the kind needs a tokenizer and there is none.
    """
    if kind == "words" or (kind == "auto" and model_dir is None):
        return WordPrompts(seed)
    if model_dir is None:
        raise ConfigError(f"--prompts {kind} needs --model-dir FOLDER, for its tokenizer.json")
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"--model-dir {model_dir}: there is no tokenizer.json in it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare exceptions for every kind of malformed file.
    except Exception as error:
        raise ConfigError(f"{path} is no readable tokenizer: {error}") from error
    return TextPrompts(tokenizer, seed) if kind == "text" else TokenIdPrompts(tokenizer, seed)
