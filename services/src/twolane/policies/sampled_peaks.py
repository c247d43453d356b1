"""The predicted peak of a batch's memory for many rows at once: what decode.PastFuture does row by row.

Array arithmetic that gives the same numbers as LengthHistory.conditional and decode.future_peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from twolane.policies.lengths import LengthHistory


class Row(Protocol):
    """A request that holds pages (decode.DecodeRow)."""

    @property
    def held_tokens(self) -> int:
        """Tokens whose pages it holds."""
        ...

    @property
    def generated_tokens(self) -> int:
        """Answer tokens so far."""
        ...

    @property
    def max_tokens(self) -> int:
        """Its limit of answer tokens."""
        ...

    @property
    def draw(self) -> float:
        """Its number in [0, 1)."""
        ...


class SampledPeaks:
    """Rows with the known lengths above each of them."""

    def __init__(self, rows: Iterable[Row], history: LengthHistory) -> None:
        values = [(row.held_tokens, row.generated_tokens, row.max_tokens, row.draw) for row in rows]
        held, generated, most, draws = zip(*values, strict=True)
        self._held = np.array(held, dtype=np.int64)
        self._generated = np.array(generated, dtype=np.int64)
        self._most = np.array(most, dtype=np.int64)
        self._draws = np.array(draws)
        known = np.array(history.ordered, dtype=np.int64)
        self._first = np.searchsorted(known, self._generated, side="right")
        self._above = len(known) - self._first
        # One place before and one behind, for indices that another branch replaces.
        self._known = np.concatenate(([0], known, [0]))
        top = np.where(self._above > 0, self._known[-2], self._generated)
        self._corners = self._above + (self._most > top)

    def peak(self, shift: float) -> int:
        """Most tokens held at any later time, with every row's draw moved by `shift`."""
        corners = self._corners
        position = ((self._draws + shift) % 1.0) * corners
        index = np.maximum(np.minimum(position.astype(np.int64), corners - 1), 0)
        low = np.where(index > 0, self._known[self._first + index], self._generated)
        high = np.where(index < self._above, self._known[self._first + index + 1], self._most)
        total = np.rint(low + (position - index) * (high - low)).astype(np.int64)
        total = np.where(corners > 0, total, self._generated)
        left = np.minimum(total, self._most) - self._generated
        order = np.argsort(-left, kind="stable")
        peaks = left[order] * np.arange(1, len(order) + 1) + np.cumsum(self._held[order])
        return max(0, int(peaks.max()))
