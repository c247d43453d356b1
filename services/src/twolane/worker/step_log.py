"""Writes what each engine step computed and how long it took: what an engine profile can be fitted to.

The step loop tells it of every step when the worker was started with --step-log-dir; `twolane profile` reads
the files.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from pathlib import Path

from twolane.core.errors import ConfigError
from twolane.engine.sequence import Sequence
from twolane.prefill.queue import PrefillBatch


class StepLog:
    """One CSV file: seconds, answers, tokens that they hold, and the prompts as new:cached, space between.

    Raises:
        ConfigError: the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="ascii")
        except OSError as error:
            raise ConfigError(f"--step-log-dir {path.parent}: {error.strerror}; it must exist") from error
        self._file.write("seconds,rows,held_tokens,prompts\n")

    def write(self, decoding: Listed[Sequence], batch: PrefillBatch, seconds: float) -> None:
        """Takes a step that has just been computed; kept in memory until a few thousand bytes are there."""
        held = sum(sequence.n_computed for sequence in decoding)
        prompts = " ".join(
            f"{tokens}:{prompt.sequence.n_computed - tokens}" for prompt, tokens in batch.chunks
        )
        self._file.write(f"{seconds:.7f},{len(decoding)},{held},{prompts}\n")

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()
