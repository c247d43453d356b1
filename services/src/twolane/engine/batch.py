"""Packs the rows of one step into index tensors: token ids, positions, where keys go, what each row attends
to.

Decode rows come first, grouped by context length so that padding stays small; prefill rows follow one by one.
Built by the engine once per step and read by every layer.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from twolane.engine.sequence import Row

Integers = npt.NDArray[np.int64]

# Two decode groups cost one more attention call per layer; worth it when it saves this many padded tokens.
_SPLIT_TOKENS = 1024
# Queries that share one explicit mask; bounds the mask's memory and the keys computed in vain.
_MASKED_QUERIES = 512


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Strides of the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], in rows of head_dim."""

    n_layers: int
    n_kv_heads: int
    page_tokens: int

    @property
    def side_rows(self) -> int:
        """Rows from a page's keys of a layer to its values."""
        return self.n_kv_heads * self.page_tokens

    @property
    def layer_rows(self) -> int:
        """Rows from one layer to the next."""
        return 2 * self.side_rows

    @property
    def page_rows(self) -> int:
        """Rows from one page to the next."""
        return self.n_layers * self.layer_rows


@dataclass(frozen=True, slots=True)
class Group:
    """Queries that one attention call handles.

    Attributes:
        start, end: their packed tokens.
        n_rows: sequences; each has (end - start) / n_rows queries.
        gather: per page, head and side the block of page_tokens rows to fetch for layer 0, ordered
            [2, n_rows, n_kv_heads, pages]; None when the keys are the group's own tokens, causally.
        n_keys: keys to use of those fetched.
        mask: added to scores, broadcast to [n_rows, 1, queries, n_keys]; None where all fetched keys are
            seen.
    """

    start: int
    end: int
    n_rows: int
    gather: torch.Tensor | None
    n_keys: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's packed rows.

    Attributes:
        order: for each packed row, its index among the rows given.
        ids, positions: int64 [T].
        write: rows of head_dim for the new keys and values, int64 [n_layers, 2, T, n_kv_heads].
        groups: attention calls, by the window of a layer.
        sampled: indices into the rows given that want a token.
        last: packed position of each of those rows' last token, int64 [S].
    """

    order: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    write: torch.Tensor
    groups: dict[int | None, list[Group]]
    sampled: list[int]
    last: torch.Tensor


class BatchBuilder:
    """Builds batches for one model; keeps what does not change from step to step."""

    def __init__(self, layout: PageLayout, windows: tuple[int | None, ...], dtype: torch.dtype) -> None:
        self.layout = layout
        self.windows = tuple(dict.fromkeys(windows))
        self.dtype = dtype
        layers = np.arange(layout.n_layers, dtype=np.int64)[:, None] * layout.layer_rows
        sides = np.arange(2, dtype=np.int64)[None, :] * layout.side_rows
        self._plane = (layers + sides)[:, :, None, None]
        self._head = np.arange(layout.n_kv_heads, dtype=np.int64) * layout.page_tokens

    def build(self, rows: Rows[Row]) -> Batch:
        """Packs `rows`; the pages of every row must cover its chunk."""
        decode = [index for index, row in enumerate(rows) if row.n_tokens == 1]
        decode.sort(key=lambda index: rows[index].sequence.n_computed)
        order = decode + [index for index, row in enumerate(rows) if row.n_tokens > 1]
        packed = [rows[index] for index in order]
        starts = np.array([row.sequence.n_computed for row in packed], dtype=np.int64)
        lengths = np.array([row.n_tokens for row in packed], dtype=np.int64)
        ends = np.cumsum(lengths)
        table = _page_table(packed, self.layout.page_tokens)
        row_of = np.repeat(np.arange(len(packed)), lengths)
        positions = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
        groups = {
            window: self._groups(_View(table, starts, lengths, ends), len(decode), window)
            for window in self.windows
        }
        wanted = [place for place, row in enumerate(packed) if row.sample]
        return Batch(
            order=order,
            ids=torch.from_numpy(_token_ids(packed, len(positions))),
            positions=torch.from_numpy(positions),
            write=torch.from_numpy(self._write(table, row_of, positions)),
            groups=groups,
            sampled=[order[place] for place in wanted],
            last=torch.from_numpy(ends[wanted] - 1),
        )

    def _write(self, table: Integers, row_of: Integers, positions: Integers) -> Integers:
        page, offset = np.divmod(positions, self.layout.page_tokens)
        base = table[row_of, page] * self.layout.page_rows + offset
        return np.asarray(self._plane + (base[:, None] + self._head))

    def _groups(self, view: _View, n_decode: int, window: int | None) -> list[Group]:
        groups = []
        first = 0
        while first < n_decode:
            stop = _split(view.starts[:n_decode], first)
            groups.append(self._decode_group(view, first, stop, window))
            first = stop
        for row in range(n_decode, len(view.starts)):
            groups.extend(self._prefill_groups(view, row, window))
        return groups

    def _decode_group(self, view: _View, first: int, stop: int, window: int | None) -> Group:
        """Rows [first, stop) with one query each, keys padded to the longest."""
        contexts = view.starts[first:stop] + 1
        begins = np.zeros_like(contexts) if window is None else np.maximum(contexts - window, 0)
        first_pages = begins // self.layout.page_tokens
        last_pages = -(-contexts // self.layout.page_tokens)
        n_pages = int((last_pages - first_pages).max())
        columns = np.minimum(first_pages[:, None] + np.arange(n_pages), view.table.shape[1] - 1)
        pages = np.take_along_axis(view.table[first:stop], columns, axis=1)
        offsets = first_pages * self.layout.page_tokens
        longest = int((contexts - offsets).max())
        mask = None
        if (contexts - offsets != longest).any() or (begins != offsets).any():
            keys = np.arange(longest) + offsets[:, None]
            seen = (keys < contexts[:, None]) & (keys >= begins[:, None])
            mask = self._additive(torch.from_numpy(seen))[:, None, None, :]
        return Group(first, stop, stop - first, self._gather(pages), longest, mask)

    def _prefill_groups(self, view: _View, row: int, window: int | None) -> list[Group]:
        """A row of several queries: plainly causal over its own tokens, or masked blocks over its pages."""
        start, n_tokens = int(view.starts[row]), int(view.lengths[row])
        packed = int(view.ends[row]) - n_tokens
        if start == 0 and (window is None or n_tokens <= window):
            return [Group(packed, packed + n_tokens, 1, None, n_tokens, None)]
        groups = []
        for low in range(0, n_tokens, _MASKED_QUERIES):
            high = min(low + _MASKED_QUERIES, n_tokens)
            begin = 0 if window is None else max(0, start + low - window + 1)
            first_page = begin // self.layout.page_tokens
            last_page = -(-(start + high) // self.layout.page_tokens)
            offset = first_page * self.layout.page_tokens
            queries = torch.arange(start + low, start + high)[:, None]
            keys = torch.arange(offset, start + high)[None, :]
            seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
            gather = self._gather(view.table[row : row + 1, first_page:last_page])
            mask = self._additive(seen)[None, None]
            groups.append(Group(packed + low, packed + high, 1, gather, start + high - offset, mask))
        return groups

    def _gather(self, pages: Integers) -> torch.Tensor:
        """Blocks of page_tokens rows of layer 0, ordered side, sequence, head, page."""
        per_page = self.layout.page_rows // self.layout.page_tokens
        heads = np.arange(self.layout.n_kv_heads, dtype=np.int64)
        blocks = pages[:, None, :] * per_page + heads[None, :, None]
        both = np.stack((blocks, blocks + self.layout.n_kv_heads))
        return torch.from_numpy(both.reshape(-1))

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class _View:
    """Arrays over packed rows: pages [R, P], first position, tokens, packed end."""

    table: Integers
    starts: Integers
    lengths: Integers
    ends: Integers


def _page_table(packed: Rows[Row], page_tokens: int) -> Integers:
    counts = [-(-(row.sequence.n_computed + row.n_tokens) // page_tokens) for row in packed]
    table = np.zeros((len(packed), max(counts)), dtype=np.int64)
    for place, (row, count) in enumerate(zip(packed, counts, strict=True)):
        table[place, :count] = row.sequence.page_ids[:count]
    return table


def _token_ids(packed: Rows[Row], total: int) -> Integers:
    ids = np.empty(total, dtype=np.int64)
    at = 0
    for row in packed:
        begin = row.sequence.n_computed
        ids[at : at + row.n_tokens] = row.sequence.tokens[begin : begin + row.n_tokens]
        at += row.n_tokens
    return ids


def _split(starts: Integers, first: int) -> int:
    """End of the group that begins at `first` of ascending contexts: cut where it saves most padding."""
    longest = int(starts[-1])
    sizes = np.arange(1, len(starts) - first + 1)
    saved = (longest - starts[first:]) * sizes
    best = int(saved.argmax())
    return first + best + 1 if saved[best] > _SPLIT_TOKENS else len(starts)
