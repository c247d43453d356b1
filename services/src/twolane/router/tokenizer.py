"""Text to tokens and single tokens to bytes, for one model.

Short prompts are encoded at once; long ones on a thread, by the call that lets go of Python's lock,
so that a 4 MB prompt does not hold up the streams of others. The way back, token by token, is in
`detokenizer.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as FastTokenizer

from twolane.core.errors import ConfigError

# Up to here encoding takes about as long as handing the work to a thread.
INLINE_CHARS = 1024

T = TypeVar("T")


class Tokenizer:
    """The model's tokenizer.

    Attributes:
        fast: the library's object, for incremental decoding.
        sha256: hex digest of tokenizer.json, as in the model's fingerprint.
        vocab_size: number of ids with a token, added ones included.
    """

    def __init__(self, model_dir: Path, threads: int = 2) -> None:
        """Reads tokenizer.json.

        Raises:
            ConfigError: it is missing or malformed.
        """
        path = model_dir / "tokenizer.json"
        try:
            raw = path.read_bytes()
            self.fast = FastTokenizer.from_buffer(raw)
            layout: dict[str, Any] = json.loads(raw)
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: the router needs a fast tokenizer") from None
        except Exception as error:
            raise ConfigError(f"{path} is not a tokenizer that can be read: {error}") from error
        # Limits of training time must not cut prompts.
        self.fast.no_truncation()
        self.fast.no_padding()
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.vocab_size: int = self.fast.get_vocab_size(with_added_tokens=True)
        self._byte_level = "ByteLevel" in _decoder_types(layout.get("decoder"))
        self._added = {index: token.content for index, token in self.fast.get_added_tokens_decoder().items()}
        self._special = {
            index for index, token in self.fast.get_added_tokens_decoder().items() if token.special
        }
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self.token_bytes = lru_cache(maxsize=65536)(self._token_bytes)

    def close(self) -> None:
        """Stops the threads; encoding that runs goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, size_chars: int, work: Callable[[], T]) -> T:
        """Does `work` here when it is small, else on a tokenizer thread."""
        if size_chars <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; `add_special_tokens` puts the begin-of-text token where the model has one."""
        # The batch call releases the interpreter's lock, the single one does not.
        encoding = self.fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        return list(encoding.ids)

    def is_special(self, token_id: int) -> bool:
        """Whether the token steers the model and never shows up in text."""
        return token_id in self._special

    def _token_bytes(self, token_id: int) -> bytes:
        """Bytes that one token stands for: part of a character at times; empty for unknown ids."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.fast.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return bytes(_BYTE_OF_CHAR[char] for char in token if char in _BYTE_OF_CHAR)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if not decoder:
        return set()
    kinds = {str(decoder.get("type"))}
    for inner in decoder.get("decoders", []):
        kinds |= _decoder_types(inner)
    return kinds


def _printable_bytes() -> Iterable[tuple[str, int]]:
    # Byte-level vocabularies write a printable byte as itself and the others as characters from 256 on.
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from ((chr(byte), byte) for byte in shown)
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    yield from ((chr(256 + place), byte) for place, byte in enumerate(hidden))


_BYTE_OF_CHAR: dict[str, int] = dict(_printable_bytes())
