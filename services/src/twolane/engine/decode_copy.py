"""A dense copy of the keys and values of running decode rows, so that a step need not fetch their pages
again.

Belongs to the torch path. Fetching pages costs three times the memory traffic of reading dense keys; a row is
fetched once when it joins and then grows by one token per step. Pages stay the truth: whatever does not fit
what the copy expects is fetched anew.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from twolane.engine.batch import Batch
from twolane.engine.dense_rows import Use, dense_rows
from twolane.engine.sequence import Row, Sequence
from twolane.engine.torch_plan import PageLayout, gather_blocks

# Rows are padded to the longest context; below this share of useful keys grouped fetching reads less.
_LEAST_USEFUL = 0.6
# Keys are stored, and multiplied, for a whole capacity: room beyond the longest context costs time.
_GROW_TOKENS = 64


@dataclass(slots=True)
class _Slot:
    """One row of the copy: whose tokens, and how many of them are in it."""

    sequence: Sequence
    n_tokens: int


class DecodeCopy:
    """The copy of one engine, at most `limit_bytes` large."""

    def __init__(self, kv: torch.Tensor, layout: PageLayout, limit_bytes: int) -> None:
        """Takes the pool; allocates nothing yet."""
        self._pages = kv
        self._layout = layout
        self._limit_bytes = limit_bytes
        self._slots: list[_Slot] = []
        self._rows = dense_rows(kv, 0, 0)

    def arrange(self, rows: Rows[Row]) -> list[int] | None:
        """The order of the decode rows among `rows` that fits the copy, or None when fetching is better.

        Rows that left are replaced by the last ones; rows that joined are fetched by `prepare`.
        """
        decode = {id(row.sequence): index for index, row in enumerate(rows) if row.n_tokens == 1}
        contexts = [rows[index].sequence.n_computed + 1 for index in decode.values()]
        longest = max(contexts, default=0)
        if not decode or sum(contexts) < _LEAST_USEFUL * longest * len(decode):
            return None
        if not self._fit(len(decode), longest):
            return None
        place = 0
        while place < len(self._slots):
            slot = self._slots[place]
            if id(slot.sequence) in decode and slot.n_tokens == slot.sequence.n_computed:
                place += 1
            else:
                self._drop(place)
        kept = [decode.pop(id(slot.sequence)) for slot in self._slots]
        return kept + list(decode.values())

    def prepare(self, rows: Rows[Row], batch: Batch, n_heads: int) -> Use:
        """Fetches the rows that joined; `batch` must be packed in the order that `arrange` gave.

        Args:
            rows: all rows of the step.
            batch: the same, packed.
            n_heads: query heads.
        """
        contexts = batch.starts[: batch.n_decode] + 1
        for place in range(len(self._slots), batch.n_decode):
            self._join(rows[batch.order[place]].sequence, batch, place)
        return self._rows.plan(contexts, n_heads)

    def attend(self, use: Use, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Adds keys, values `new` [B, 2 * Hkv, D] and attends, one query a row [B, Hq, D]: [B, Hq * D]."""
        return self._rows.attend(use, layer, query, new)

    def commit(self, use: Use) -> None:
        """Counts the new tokens once the step has succeeded."""
        for slot in self._slots[: use.n_rows]:
            slot.n_tokens += 1

    def _fit(self, n_rows: int, longest: int) -> bool:
        """Makes room, dropping all when there must be more; False beyond the limit."""
        held = self._rows
        if n_rows <= held.n_rows and longest <= held.capacity:
            return True
        rows = 1 << (n_rows - 1).bit_length()
        tokens = -(-longest // _GROW_TOKENS) * _GROW_TOKENS
        # One long answer that has ended must not keep the copy from many short ones: grow, else start anew.
        for room in ((max(held.n_rows, rows), max(held.capacity, tokens)), (rows, tokens)):
            if self._bytes(*room) <= self._limit_bytes:
                self._slots.clear()
                self._rows = dense_rows(self._pages, *room)
                return True
        return False

    def _bytes(self, n_rows: int, capacity: int) -> int:
        n_layers, _, n_kv_heads, _, head_dim = self._pages.shape[1:]
        return n_layers * 2 * n_rows * n_kv_heads * capacity * head_dim * self._pages.element_size()

    def _drop(self, place: int) -> None:
        last = self._slots.pop()
        if place < len(self._slots):
            self._slots[place] = last
            self._rows.move(len(self._slots), place, last.n_tokens)

    def _join(self, sequence: Sequence, batch: Batch, place: int) -> None:
        """Fetches the pages of a row that is new to the copy."""
        n_tokens = sequence.n_computed
        self._slots.append(_Slot(sequence, n_tokens))
        n_pages = -(-n_tokens // self._layout.page_tokens)
        if n_pages == 0:
            return
        head_dim = self._pages.shape[-1]
        blocks = self._pages.view(-1, self._layout.page_tokens * head_dim)
        index = gather_blocks(batch.table[place : place + 1, :n_pages], self._layout)
        for layer in range(self._layout.n_layers):
            fetched = blocks[layer * self._layout.layer_blocks :].index_select(0, index)
            sides = fetched.view(2, self._layout.n_kv_heads, -1, head_dim)
            self._rows.put(layer, place, sides[0, :, :n_tokens], sides[1, :, :n_tokens])
