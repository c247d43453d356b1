"""Packs the rows of one step into plain arrays: token ids, positions, page table, lengths, what to sample.

Decode rows come first, in the order the forward pass asks for, then prefill rows. Built by the engine once
per step; the torch path and the kernel path make their own index tensors from it.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from twolane.engine.sequence import Row

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's packed rows: R rows, T tokens, S of the rows sampled.

    Attributes:
        order: for each packed row, its index among the rows given.
        n_decode: packed rows that have one token; they come first.
        ids, positions: [T].
        starts: first position of each row [R]; its context before this step.
        lengths: tokens of each row [R].
        ends: packed end of each row [R].
        table: page numbers [R, P], zero past a row's last page.
        places: the S packed rows that are sampled.
        sampled: for each of them, its index among the rows given.
        last: packed position of each one's last token [S].
    """

    order: list[int]
    n_decode: int
    ids: Integers
    positions: Integers
    starts: Integers
    lengths: Integers
    ends: Integers
    table: Integers
    places: list[int]
    sampled: list[int]
    last: Integers

    @property
    def row_of(self) -> Integers:
        """Packed row of each token [T]."""
        return np.repeat(np.arange(len(self.order)), self.lengths)


def decode_first(rows: Rows[Row]) -> list[int]:
    """The default order: decode rows by context, so that alike ones are neighbours, then prefill as given."""
    decode = [index for index, row in enumerate(rows) if row.n_tokens == 1]
    decode.sort(key=lambda index: rows[index].sequence.n_computed)
    return decode + [index for index, row in enumerate(rows) if row.n_tokens > 1]


def pack(rows: Rows[Row], order: list[int], page_tokens: int) -> Batch:
    """Packs `rows` in `order` (decode rows first); the pages of every row must cover its chunk."""
    packed = [rows[index] for index in order]
    n_decode = sum(row.n_tokens == 1 for row in packed)
    starts = np.array([row.sequence.n_computed for row in packed], dtype=np.int64)
    places = [place for place, row in enumerate(packed) if row.sample]
    if n_decode == len(packed):
        lengths = np.ones_like(starts)
        ends = np.arange(1, n_decode + 1)
        positions = starts
        ids = np.array([row.sequence.tokens[row.sequence.n_computed] for row in packed], dtype=np.int64)
    else:
        lengths = np.array([row.n_tokens for row in packed], dtype=np.int64)
        ends = np.cumsum(lengths)
        positions = np.arange(int(ends[-1])) + np.repeat(starts + lengths - ends, lengths)
        ids = _token_ids(packed, len(positions))
    return Batch(
        order=order,
        n_decode=n_decode,
        ids=ids,
        positions=positions,
        starts=starts,
        lengths=lengths,
        ends=ends,
        table=_page_table(packed, page_tokens),
        places=places,
        sampled=[order[place] for place in places],
        last=ends[places] - 1,
    )


def _page_table(packed: list[Row], page_tokens: int) -> Integers:
    counts = [-(-(row.sequence.n_computed + row.n_tokens) // page_tokens) for row in packed]
    held = chain.from_iterable(
        islice(row.sequence.page_ids, count) for row, count in zip(packed, counts, strict=True)
    )
    # All page numbers in one go: a table is filled row by row, as a mask of its places counts them.
    flat = np.fromiter(held, dtype=np.int64, count=sum(counts))
    longest = max(counts)
    if len(flat) == longest * len(packed):
        return flat.reshape(len(packed), longest)
    table = np.zeros((len(packed), longest), dtype=np.int64)
    table[np.arange(longest) < np.array(counts)[:, None]] = flat
    return table


def _token_ids(packed: list[Row], total: int) -> Integers:
    ids = np.empty(total, dtype=np.int64)
    at = 0
    for row in packed:
        begin = row.sequence.n_computed
        ids[at : at + row.n_tokens] = row.sequence.tokens[begin : begin + row.n_tokens]
        at += row.n_tokens
    return ids
