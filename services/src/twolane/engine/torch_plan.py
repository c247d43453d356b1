"""Index tensors of one step for the torch path: where keys and values go, which pages each query group reads.

Built once per step by the torch forward pass and read by every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from twolane.engine.batch import Batch, Integers

# Two decode groups cost one more attention call per layer; worth it when it saves this many padded tokens.
_SPLIT_TOKENS = 1024
# Queries that share one explicit mask; bounds the mask's memory and the keys computed in vain.
_MASKED_QUERIES = 512


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Middle sizes of a pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim]."""

    n_layers: int
    n_kv_heads: int
    page_tokens: int

    @property
    def layer_blocks(self) -> int:
        """Blocks [page_tokens, head_dim] of one page and layer: keys of every head, then values."""
        return 2 * self.n_kv_heads

    @property
    def page_blocks(self) -> int:
        """Blocks of one page."""
        return self.n_layers * self.layer_blocks

    @property
    def layer_starts(self) -> list[int]:
        """The first block of each layer in a page."""
        return [layer * self.layer_blocks for layer in range(self.n_layers)]


@dataclass(frozen=True, slots=True)
class Group:
    """Queries that one attention call handles.

    Attributes:
        start, end: their packed tokens.
        n_rows: sequences; each has (end - start) / n_rows queries.
        gather: blocks to fetch, relative to the layer's first, ordered [2, n_rows, n_kv_heads, pages]; None
            when the keys are the group's own tokens, causally.
        n_keys: keys to use of those fetched.
        mask: added to scores, broadcast to [n_rows, 1, queries, n_keys]; None where all keys are seen.
    """

    start: int
    end: int
    n_rows: int
    gather: torch.Tensor | None
    n_keys: int
    mask: torch.Tensor | None


def write_rows(batch: Batch, layout: PageLayout) -> torch.Tensor:
    """Rows of head_dim, relative to the layer's first, of each token's keys, values [T, 2 * n_kv_heads]."""
    page, offset = np.divmod(batch.positions, layout.page_tokens)
    rows = batch.positions if len(batch.order) == len(batch.positions) else None
    page_ids = batch.table[np.arange(len(rows)) if rows is not None else batch.row_of, page]
    base = page_ids * (layout.page_blocks * layout.page_tokens) + offset
    return torch.from_numpy(base[:, None] + np.arange(layout.layer_blocks) * layout.page_tokens)


def groups(
    batch: Batch, layout: PageLayout, window: int | None, dtype: torch.dtype, first_row: int = 0
) -> list[Group]:
    """Attention calls of the rows from `first_row` on, for layers with this sliding window."""
    planner = _Planner(batch, layout, window, dtype)
    found = []
    while first_row < batch.n_decode:
        stop = _split(batch.starts[: batch.n_decode], first_row)
        found.append(planner.decode(first_row, stop))
        first_row = stop
    for row in range(max(first_row, batch.n_decode), len(batch.order)):
        found.extend(planner.prefill(row))
    return found


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as something to add to scores: 0 where seen, else minus infinity."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class _Planner:
    batch: Batch
    layout: PageLayout
    window: int | None
    dtype: torch.dtype

    def decode(self, first: int, stop: int) -> Group:
        """Rows [first, stop) with one query each, keys padded to the longest."""
        contexts = self.batch.starts[first:stop] + 1
        if self.window is None:
            longest = int(contexts.max())
            pages = self.batch.table[first:stop, : -(-longest // self.layout.page_tokens)]
            begins = offsets = np.zeros_like(contexts)
        else:
            begins = np.maximum(contexts - self.window, 0)
            first_pages = begins // self.layout.page_tokens
            offsets = first_pages * self.layout.page_tokens
            longest = int((contexts - offsets).max())
            columns = first_pages[:, None] + np.arange(-(-longest // self.layout.page_tokens))
            columns = np.minimum(columns, self.batch.table.shape[1] - 1)
            pages = np.take_along_axis(self.batch.table[first:stop], columns, axis=1)
        mask = None
        if (contexts - offsets != longest).any() or (begins != offsets).any():
            keys = np.arange(longest) + offsets[:, None]
            seen = (keys < contexts[:, None]) & (keys >= begins[:, None])
            mask = additive(torch.from_numpy(seen), self.dtype)[:, None, None, :]
        return Group(first, stop, stop - first, self._gather(pages), longest, mask)

    def prefill(self, row: int) -> list[Group]:
        """A row of several queries: plainly causal over its own tokens, or masked blocks over its pages."""
        start, n_tokens = int(self.batch.starts[row]), int(self.batch.lengths[row])
        packed = int(self.batch.ends[row]) - n_tokens
        if start == 0 and (self.window is None or n_tokens <= self.window):
            return [Group(packed, packed + n_tokens, 1, None, n_tokens, None)]
        found = []
        for low in range(0, n_tokens, _MASKED_QUERIES):
            high = min(low + _MASKED_QUERIES, n_tokens)
            begin = 0 if self.window is None else max(0, start + low - self.window + 1)
            first_page = begin // self.layout.page_tokens
            last_page = -(-(start + high) // self.layout.page_tokens)
            offset = first_page * self.layout.page_tokens
            queries = torch.arange(start + low, start + high)[:, None]
            keys = torch.arange(offset, start + high)[None, :]
            seen = keys <= queries
            if self.window is not None:
                seen &= keys > queries - self.window
            gather = self._gather(self.batch.table[row : row + 1, first_page:last_page])
            mask = additive(seen, self.dtype)[None, None]
            found.append(Group(packed + low, packed + high, 1, gather, start + high - offset, mask))
        return found

    def _gather(self, pages: Integers) -> torch.Tensor:
        return gather_blocks(pages, self.layout)


def gather_blocks(pages: Integers, layout: PageLayout) -> torch.Tensor:
    """Blocks of pages [R, P] relative to a layer's first, ordered side, row, head, page, flat."""
    heads = np.arange(layout.n_kv_heads, dtype=np.int64)
    blocks = pages[:, None, :] * layout.page_blocks + heads[:, None]
    both = np.stack((blocks, blocks + layout.n_kv_heads))
    return torch.from_numpy(both.reshape(-1))


def _split(starts: Integers, first: int) -> int:
    """End of the group that begins at `first` of ascending contexts: cut where it saves most padding."""
    longest = int(starts[-1])
    sizes = np.arange(1, len(starts) - first + 1)
    saved = (longest - starts[first:]) * sizes
    best = int(saved.argmax())
    return first + best + 1 if saved[best] > _SPLIT_TOKENS else len(starts)
