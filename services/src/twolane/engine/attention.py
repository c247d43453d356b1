"""Attention over pages in plain torch: writes new keys and values, fetches pages, calls SDPA per group.

The path of CPU engines; called by the model once per layer. Query heads that share a key head are folded into
the query axis for decode, so no key is repeated.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from twolane.engine.batch import Batch, Group, PageLayout


class TorchAttention:
    """Attention of one engine's pool."""

    def __init__(self, kv: torch.Tensor, layout: PageLayout) -> None:
        """Takes the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], contiguous."""
        head_dim = kv.shape[-1]
        self._rows = kv.view(-1, head_dim)
        self._blocks = kv.view(-1, layout.page_tokens * head_dim)
        self._layer_blocks = 2 * layout.n_kv_heads
        self._page_tokens = layout.page_tokens
        self._scratch = kv.new_empty(0, layout.page_tokens * head_dim)

    def attend(
        self, batch: Batch, layer: int, window: int | None, heads: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Stores keys and values, then attends.

        Args:
            batch: the step.
            layer: which layer's pages.
            window: the layer's sliding window.
            heads: rotated queries [T, Hq, D] and keys [T, Hkv, D], values [T, Hkv, D].

        Returns:
            [T, Hq * D].
        """
        query, key, value = heads
        self._rows.index_put_((batch.write[layer, 0],), key)
        self._rows.index_put_((batch.write[layer, 1],), value)
        groups = batch.groups[window]
        if len(groups) == 1:
            return self._group(groups[0], layer, heads)
        out = query.new_empty(query.shape[0], query.shape[1] * query.shape[2])
        for group in groups:
            out[group.start : group.end] = self._group(group, layer, heads)
        return out

    def _group(self, group: Group, layer: int, heads: tuple[torch.Tensor, ...]) -> torch.Tensor:
        query, key, value = (x[group.start : group.end] for x in heads)
        n_queries, n_heads, head_dim = query.shape
        n_kv_heads = key.shape[1]
        if group.gather is None:
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.squeeze(0).transpose(0, 1).reshape(n_queries, n_heads * head_dim)
        k, v = self._fetch(group, layer, n_kv_heads, head_dim)
        if n_queries == group.n_rows:
            q = query.reshape(group.n_rows, n_kv_heads, n_heads // n_kv_heads, head_dim)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
            return out.reshape(n_queries, n_heads * head_dim)
        q = query.transpose(0, 1).unsqueeze(0)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1).reshape(n_queries, n_heads * head_dim)

    def _fetch(
        self, group: Group, layer: int, n_kv_heads: int, head_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the group's pages, each [n_rows, n_kv_heads, n_keys, head_dim]."""
        assert group.gather is not None
        n_blocks = group.gather.shape[0]
        if n_blocks > self._scratch.shape[0]:
            # Kept from step to step: a fresh buffer of megabytes costs more in page faults than the copy
            # itself.
            self._scratch = self._blocks.new_empty(n_blocks, self._blocks.shape[1])
        index = group.gather + layer * self._layer_blocks
        fetched = torch.index_select(self._blocks, 0, index, out=self._scratch[:n_blocks])
        n_slots = n_blocks // (2 * group.n_rows * n_kv_heads) * self._page_tokens
        sides = fetched.view(2, group.n_rows, n_kv_heads, n_slots, head_dim)[:, :, :, : group.n_keys]
        return sides[0], sides[1]
