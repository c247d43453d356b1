"""Where the copy of running decode rows lies, and how one query per row attends over it.

Belongs to the torch path's decode copy. In float32 keys are kept turned, [head_dim, tokens]: both products of
attention are then weighted sums of long rows, which torch's embedding bags compute in a third less time than
scaled_dot_product_attention. Other types keep keys as pages have them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from twolane.engine.batch import Integers
from twolane.engine.torch_plan import additive

# Products of fewer query heads are too small to make up for the bags' index lists.
_BAG_HEADS = 16


@dataclass(frozen=True, slots=True)
class Bags:
    """Index lists of both products, for all query heads of all rows."""

    key_rows: torch.Tensor
    key_offsets: torch.Tensor
    value_rows: torch.Tensor
    value_offsets: torch.Tensor


@dataclass(frozen=True, slots=True)
class Use:
    """How one step uses the copy.

    Attributes:
        n_rows: decode rows, slot 0 first.
        n_keys: longest context.
        write_keys, write_values: where the new token of each row goes in a layer, flat.
        mask: added to scores [B, 1, 1, n_keys]; None when all contexts are equally long.
        bags: None where matrix products serve better.
    """

    n_rows: int
    n_keys: int
    write_keys: torch.Tensor
    write_values: torch.Tensor
    mask: torch.Tensor | None
    bags: Bags | None = None


class DenseRows(Protocol):
    """Dense keys and values [layers, rows, kv heads, tokens, head_dim] of so many rows and tokens."""

    n_rows: int
    capacity: int

    def put(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores a row's first tokens, each [n_kv_heads, n, head_dim]."""
        ...

    def move(self, row: int, to: int, n_tokens: int) -> None:
        """Copies the first tokens of one row to another."""
        ...

    def plan(self, contexts: Integers, n_heads: int) -> Use:
        """Index tensors of a step whose rows then have so many tokens [B] and n_heads query heads."""
        ...

    def attend(self, use: Use, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Adds keys, values `new` [B, 2 * Hkv, D] and attends, one query a row [B, Hq, D]: [B, Hq * D]."""
        ...


def dense_rows(pages: torch.Tensor, n_rows: int, capacity: int) -> DenseRows:
    """The storage that suits the pages' type; zeroed: masked keys count zero times, garbage may be NaN."""
    kind = TurnedRows if pages.dtype is torch.float32 else PlainRows
    return kind(pages, n_rows, capacity)


class PlainRows:
    """Keys as values: [head, tokens, head_dim]."""

    def __init__(self, pages: torch.Tensor, n_rows: int, capacity: int) -> None:
        """Allocates for the layers and heads of a pool."""
        n_layers, _, heads, _, head_dim = pages.shape[1:]
        self.n_rows, self.capacity, self._heads = n_rows, capacity, heads
        self._dense = pages.new_zeros(n_layers, 2, n_rows, heads, capacity, head_dim)
        self._flat = self._dense.view(n_layers, 2, n_rows * heads * capacity, head_dim)

    def put(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """As DenseRows says."""
        self._dense[layer, 0, row, :, : keys.shape[1]] = keys
        self._dense[layer, 1, row, :, : keys.shape[1]] = values

    def move(self, row: int, to: int, n_tokens: int) -> None:
        """As DenseRows says."""
        self._dense[:, :, to, :, :n_tokens] = self._dense[:, :, row, :, :n_tokens]

    def plan(self, contexts: Integers, n_heads: int) -> Use:
        """As DenseRows says."""
        del n_heads
        write = _heads_at(contexts, self._heads, self.capacity)
        return Use(len(contexts), int(contexts.max()), write, write, _mask(contexts, self._dense.dtype))

    def attend(self, use: Use, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """As DenseRows says."""
        keys, values = self._flat[layer, 0], self._flat[layer, 1]
        keys.index_put_((use.write_keys,), new[:, : self._heads])
        values.index_put_((use.write_values,), new[:, self._heads :])
        sides = self._dense[layer, :, : use.n_rows, :, : use.n_keys]
        q = query.reshape(use.n_rows, self._heads, -1, query.shape[-1])
        out = functional.scaled_dot_product_attention(q, sides[0], sides[1], attn_mask=use.mask)
        return out.reshape(use.n_rows, -1)


class TurnedRows:
    """Keys turned, [head, head_dim, tokens]; float32 only, where sums of products keep their precision."""

    def __init__(self, pages: torch.Tensor, n_rows: int, capacity: int) -> None:
        """Allocates for the layers and heads of a pool."""
        n_layers, _, heads, _, head_dim = pages.shape[1:]
        self.n_rows, self.capacity, self._heads, self._head_dim = n_rows, capacity, heads, head_dim
        self._keys = pages.new_zeros(n_layers, n_rows * heads * head_dim, capacity)
        self._values = pages.new_zeros(n_layers, n_rows * heads * capacity, head_dim)
        # One view per layer, made once.
        self._key_tables, self._value_tables = list(self._keys), list(self._values)
        self._flat_keys = [keys.view(-1) for keys in self._key_tables]
        self._scale = 1.0 / math.sqrt(head_dim)
        self._planned: tuple[int, int, int] = (0, 0, 0)
        self._bags: Bags | None = None

    def put(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """As DenseRows says."""
        n_tokens = keys.shape[1]
        self._row_keys(layer, row)[:, :, :n_tokens] = keys.transpose(1, 2)
        self._row_values(layer, row)[:, :n_tokens] = values

    def move(self, row: int, to: int, n_tokens: int) -> None:
        """As DenseRows says."""
        for layer in range(self._keys.shape[0]):
            self._row_keys(layer, to)[:, :, :n_tokens] = self._row_keys(layer, row)[:, :, :n_tokens]
            self._row_values(layer, to)[:, :n_tokens] = self._row_values(layer, row)[:, :n_tokens]

    def plan(self, contexts: Integers, n_heads: int) -> Use:
        """As DenseRows says."""
        values = _heads_at(contexts, self._heads, self.capacity)
        heads = np.arange(len(contexts) * self._heads).reshape(len(contexts), self._heads, 1)
        dims = (heads * self._head_dim + np.arange(self._head_dim)) * self.capacity
        keys = torch.from_numpy(dims + (contexts - 1)[:, None, None])
        n_keys, n_rows = int(contexts.max()), len(contexts)
        bags = self._plan_bags(n_rows, n_heads, n_keys) if n_rows * n_heads >= _BAG_HEADS else None
        return Use(n_rows, n_keys, keys, values, _mask(contexts, self._keys.dtype), bags)

    def attend(self, use: Use, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """As DenseRows says."""
        keys, values, heads = self._key_tables[layer], self._value_tables[layer], self._heads
        self._flat_keys[layer].index_put_((use.write_keys,), new[:, :heads])
        values.index_put_((use.write_values,), new[:, heads:])
        scaled = query * self._scale
        n_all, n_rows, n_keys = scaled.shape[0] * scaled.shape[1], use.n_rows, use.n_keys
        if use.bags is None:
            turned = keys.view(-1, self._head_dim, self.capacity)[: n_rows * heads, :, :n_keys]
            scores = torch.bmm(scaled.view(n_rows * heads, -1, self._head_dim), turned)
        else:
            bags = use.bags
            scores = _bag(keys, bags.key_rows, bags.key_offsets, scaled.view(-1))[:, :n_keys]
        if use.mask is not None:
            scores = scores.view(n_rows, 1, n_all // n_rows, n_keys) + use.mask
        shares = torch.softmax(scores, -1)
        if use.bags is None:
            shown = values.view(-1, self.capacity, self._head_dim)[: n_rows * heads, :n_keys]
            return torch.bmm(shares.view(n_rows * heads, -1, n_keys), shown).view(n_rows, -1)
        return _bag(values, use.bags.value_rows, use.bags.value_offsets, shares.view(-1)).view(n_rows, -1)

    def _plan_bags(self, n_rows: int, n_heads: int, n_keys: int) -> Bags:
        if self._bags is not None and self._planned == (n_rows, n_heads, n_keys):
            return self._bags
        group, n_all = n_heads // self._heads, n_rows * n_heads
        heads = torch.arange(n_rows * self._heads, dtype=torch.int32)[:, None, None]
        if self._bags is not None and self._planned[:2] == (n_rows, n_heads):
            key_rows, key_offsets = self._bags.key_rows, self._bags.key_offsets
        else:
            dims = torch.arange(self._head_dim, dtype=torch.int32)
            key_rows = (heads * self._head_dim + dims).expand(-1, group, -1).reshape(-1)
            key_offsets = torch.arange(n_all, dtype=torch.int32) * self._head_dim
        tokens = torch.arange(n_keys, dtype=torch.int32)
        value_rows = (heads * self.capacity + tokens).expand(-1, group, -1).reshape(-1)
        value_offsets = torch.arange(n_all, dtype=torch.int32) * n_keys
        self._planned = (n_rows, n_heads, n_keys)
        self._bags = Bags(key_rows, key_offsets, value_rows, value_offsets)
        return self._bags

    def _row_keys(self, layer: int, row: int) -> torch.Tensor:
        """[n_kv_heads, head_dim, capacity] of a row."""
        return self._keys[layer].view(self.n_rows, self._heads, self._head_dim, self.capacity)[row]

    def _row_values(self, layer: int, row: int) -> torch.Tensor:
        """[n_kv_heads, capacity, head_dim] of a row."""
        return self._values[layer].view(self.n_rows, self._heads, self.capacity, self._head_dim)[row]


def _bag(
    table: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Per bag, the weighted sum of its rows of the table."""
    sums: torch.Tensor = torch.embedding_bag(table, rows, offsets, False, 0, False, weights)[0]
    return sums


def _heads_at(contexts: Integers, n_heads: int, capacity: int) -> torch.Tensor:
    """For each row and head, where its last token lies among [rows, heads, capacity], flat [B, n_heads]."""
    heads = np.arange(len(contexts) * n_heads).reshape(len(contexts), n_heads)
    return torch.from_numpy(heads * capacity + (contexts - 1)[:, None])


def _mask(contexts: Integers, dtype: torch.dtype) -> torch.Tensor | None:
    longest = int(contexts.max())
    if (contexts == longest).all():
        return None
    return additive(torch.from_numpy(np.arange(longest) < contexts[:, None]), dtype)[:, None, None, :]
