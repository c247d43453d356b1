"""Compiled attention over pages, one call or one for each of torch's threads where there is enough to do.

Used by the compiled forward pass for decode rows and short prompts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from twolane.engine.compiled import (
    END_HEAD,
    FIRST_HEAD,
    HEADS,
    KV_HEADS,
    LAYER_START,
    N_NUMBERS,
    PAGE_STRIDE,
    PAGE_TOKENS,
    WINDOW,
    Floats,
    Integers,
    attend,
)
from twolane.engine.model import Model
from twolane.engine.torch_plan import PageLayout

# Products of queries with keys, times head_dim, that are worth handing to another thread.
_THREAD_WORK = 4 << 20


class CompiledAttention:
    """Attention of tokens over the pages of their rows.

    Attributes:
        numbers: for each layer, what compiled functions ask about shapes.
    """

    def __init__(self, pages: Floats, model: Model, layout: PageLayout) -> None:
        """Takes the pool, flat."""
        self._pages = pages
        self._n_kv_heads = layout.n_kv_heads
        self._per_key = model.n_heads * model.spec.head_dim
        self._shape = (model.n_heads, model.spec.head_dim)
        self._threads: ThreadPoolExecutor | None = None
        block = layout.page_tokens * model.spec.head_dim
        self.numbers: list[Integers] = []
        for start, window in zip(layout.layer_starts, model.spec.windows, strict=True):
            numbers = np.zeros(N_NUMBERS, dtype=np.int64)
            numbers[[HEADS, KV_HEADS, PAGE_TOKENS]] = (model.n_heads, layout.n_kv_heads, layout.page_tokens)
            numbers[[PAGE_STRIDE, LAYER_START]] = (layout.page_blocks * block, start * block)
            numbers[[WINDOW, FIRST_HEAD, END_HEAD]] = (window or 0, 0, layout.n_kv_heads)
            self.numbers.append(numbers)

    def attend(self, layer: int, heads: Floats, tokens: Integers, table: Integers, to: Floats) -> None:
        """Attention of the first tokens over pages that already hold them.

        Args:
            layer: its number.
            heads: rotated queries, keys, values of all tokens [T, Hq + 2 * Hkv, D].
            tokens: packed row and position of the n tokens that attend [n, 2].
            table: pages of each row [R, P].
            to: attended of all tokens [T, Hq * D]; the first n rows are written.
        """
        n = len(tokens)
        if n == 0:
            return
        numbers, out = self.numbers[layer], to.reshape(-1, *self._shape)
        n_parts = self._n_parts(tokens)
        if n_parts == 1:
            attend(heads[:n], self._pages, tokens, table, numbers, out[:n])
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads() - 1, "twolane-attention")
        calls = [
            (heads[first:end], self._pages, tokens[first:end], table, own, out[first:end])
            for first, end, own in _parts(tokens, numbers, n_parts)
        ]
        works = [self._threads.submit(attend, *call) for call in calls[1:]]
        attend(*calls[0])
        for work in works:
            work.result()

    def _n_parts(self, tokens: Integers) -> int:
        n_threads = torch.get_num_threads()
        if n_threads == 1:
            return 1
        work = int(tokens[:, 1].sum()) * self._per_key
        return max(1, min(n_threads, work // _THREAD_WORK))


def _parts(tokens: Integers, numbers: Integers, n_parts: int) -> list[tuple[int, int, Integers]]:
    """Tokens [first, end) and their numbers: many tokens are split by their keys, few by heads."""
    if len(tokens) >= n_parts:
        keys = np.cumsum(tokens[:, 1] + 1)
        cuts = np.searchsorted(keys, keys[-1] * np.arange(1, n_parts) / n_parts)
        bounds = [0, *(int(cut) for cut in cuts), len(tokens)]
        return [(a, b, numbers) for a, b in pairwise(bounds) if a < b]
    n_heads = int(numbers[END_HEAD])
    bounds = sorted({n_heads * part // n_parts for part in range(n_parts + 1)})
    found = []
    for first, end in pairwise(bounds):
        own = numbers.copy()
        own[[FIRST_HEAD, END_HEAD]] = (first, end)
        found.append((0, len(tokens), own))
    return found
