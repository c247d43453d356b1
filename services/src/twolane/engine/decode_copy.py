"""A dense copy of the keys and values of running decode rows, so that a step need not fetch their pages
again.

Belongs to the torch path. Fetching pages costs three times the memory traffic of reading dense keys; a row is
fetched once when it joins and then grows by one token per step. Pages stay the truth: whatever does not fit
what the copy expects is fetched anew.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch

from twolane.engine.batch import Batch
from twolane.engine.sequence import Row, Sequence
from twolane.engine.torch_plan import PageLayout, additive, gather_blocks

# Rows are padded to the longest context; below this share of useful keys grouped fetching reads less.
_LEAST_USEFUL = 0.6
_GROW_TOKENS = 256


@dataclass(slots=True)
class _Slot:
    """One row of the copy: whose tokens, and how many of them are in it."""

    sequence: Sequence
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Use:
    """How one step uses the copy.

    Attributes:
        n_rows: decode rows, slot 0 first.
        write: rows of head_dim, relative to the layer's first, of the new keys then values [B, 2 *
            n_kv_heads].
        n_keys: longest context.
        mask: added to scores [B, 1, 1, n_keys]; None when all contexts are equally long.
    """

    n_rows: int
    write: torch.Tensor
    n_keys: int
    mask: torch.Tensor | None


class DecodeCopy:
    """The copy of one engine, at most `limit_bytes` large."""

    def __init__(self, kv: torch.Tensor, layout: PageLayout, limit_bytes: int) -> None:
        """Takes the pool; allocates nothing yet."""
        self._pages = kv
        self._layout = layout
        self._limit_bytes = limit_bytes
        self._slots: list[_Slot] = []
        self._resize(0, 0)

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

    def prepare(self, rows: Rows[Row], batch: Batch) -> Use:
        """Fetches the rows that joined; `batch` must be packed in the order that `arrange` gave."""
        contexts = batch.starts[: batch.n_decode] + 1
        for place in range(len(self._slots), batch.n_decode):
            self._join(rows[batch.order[place]].sequence, batch, place)
        longest = int(contexts.max())
        mask = None
        if (contexts != longest).any():
            mask = additive(torch.from_numpy(np.arange(longest) < contexts[:, None]), self._pages.dtype)
            mask = mask[:, None, None, :]
        n_kv_heads, capacity = self._layout.n_kv_heads, self._capacity
        slots = np.arange(batch.n_decode)[:, None, None] * n_kv_heads
        sides = np.arange(2)[None, :, None] * (self._n_rows * n_kv_heads)
        heads = slots + sides + np.arange(n_kv_heads)
        write = heads.reshape(batch.n_decode, -1) * capacity + (contexts - 1)[:, None]
        return Use(batch.n_decode, torch.from_numpy(write), longest, mask)

    def read(self, use: Use, layer: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values `new` [B, 2 * n_kv_heads, D]; returns all, each [B, n_kv_heads, n_keys, D]."""
        self._flat[layer].index_put_((use.write,), new)
        sides = self._dense[layer, :, : use.n_rows, :, : use.n_keys]
        return sides[0], sides[1]

    def commit(self, use: Use) -> None:
        """Counts the new tokens once the step has succeeded."""
        for slot in self._slots[: use.n_rows]:
            slot.n_tokens += 1

    def _fit(self, n_rows: int, longest: int) -> bool:
        """Makes room, dropping all when it must grow; False beyond the limit."""
        if n_rows <= self._n_rows and longest <= self._capacity:
            return True
        rows = 1 << (n_rows - 1).bit_length()
        tokens = -(-longest // _GROW_TOKENS) * _GROW_TOKENS
        # One long answer that has ended must not keep the copy from many short ones: grow, else start anew.
        for room in ((max(self._n_rows, rows), max(self._capacity, tokens)), (rows, tokens)):
            if self._bytes(*room) <= self._limit_bytes:
                self._slots.clear()
                self._resize(*room)
                return True
        return False

    def _bytes(self, n_rows: int, capacity: int) -> int:
        n_layers, _, n_kv_heads, _, head_dim = self._pages.shape[1:]
        return n_layers * 2 * n_rows * n_kv_heads * capacity * head_dim * self._pages.element_size()

    def _resize(self, n_rows: int, capacity: int) -> None:
        n_layers, _, n_kv_heads, _, head_dim = self._pages.shape[1:]
        self._n_rows, self._capacity = n_rows, capacity
        # Zeroed: masked keys count zero times, and zero times garbage may be NaN.
        self._dense = self._pages.new_zeros(n_layers, 2, n_rows, n_kv_heads, capacity, head_dim)
        self._flat = self._dense.view(n_layers, 2 * n_rows * n_kv_heads * capacity, head_dim)

    def _drop(self, place: int) -> None:
        last = self._slots.pop()
        if place < len(self._slots):
            self._slots[place] = last
            n_tokens = last.n_tokens
            self._dense[:, :, place, :, :n_tokens] = self._dense[:, :, len(self._slots), :, :n_tokens]

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
            self._dense[layer, :, place, :, :n_tokens] = sides[:, :, :n_tokens]
