"""Attention of groups of queries over pages or their own tokens, by torch's scaled_dot_product_attention.

Used by both forward passes for CPUs: the plain one for whatever its dense copy doesn't hold, the compiled one
for prompts.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from twolane.engine.torch_plan import Group, PageLayout


class PageAttention:
    """Attention over one pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], contiguous."""

    def __init__(self, kv: torch.Tensor, layout: PageLayout) -> None:
        """Takes the pool and its middle sizes."""
        self._layout = layout
        self._head_dim = kv.shape[5]
        blocks = kv.view(-1, layout.page_tokens * self._head_dim)
        # One view per layer, so that the same indices serve all layers.
        self._blocks = [blocks[start:] for start in layout.layer_starts]
        self._scratch = kv.new_empty(0, layout.page_tokens * self._head_dim)

    def attend(self, group: Group, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Attention of a group's tokens.

        Args:
            group: which of the step's tokens, and what they see.
            layer: number of the layer, whose pages already hold these tokens.
            query: of all tokens [T, Hq, D].
            new: keys, values of all tokens [T, 2 * Hkv, D].

        Returns:
            [tokens of the group, Hq * D].
        """
        query = query[group.start : group.end]
        n_queries, n_heads, head_dim = query.shape
        if group.gather is None:
            own = new[group.start : group.end].transpose(0, 1).unsqueeze(0)
            keys, values = own.chunk(2, dim=1)
        else:
            keys, values = self._fetch(group, layer)
            if n_queries == group.n_rows:
                return _decode(query, keys, values, group.mask)
        q = query.transpose(0, 1).unsqueeze(0)
        out = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=group.mask, is_causal=group.mask is None, enable_gqa=True
        )
        return out.squeeze(0).transpose(0, 1).reshape(n_queries, n_heads * head_dim)

    def _fetch(self, group: Group, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the group's pages, each [n_rows, n_kv_heads, n_keys, head_dim]."""
        assert group.gather is not None
        n_blocks = group.gather.shape[0]
        if n_blocks > self._scratch.shape[0]:
            # Kept from step to step: page faults of a fresh buffer cost more than the copy itself.
            self._scratch = self._scratch.new_empty(n_blocks, self._scratch.shape[1])
        fetched = torch.index_select(self._blocks[layer], 0, group.gather, out=self._scratch[:n_blocks])
        n_kv_heads = self._layout.n_kv_heads
        sides = fetched.view(2, group.n_rows, n_kv_heads, -1, self._head_dim)[:, :, :, : group.n_keys]
        return sides[0], sides[1]


def _decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One query per row [B, Hq, D] over keys [B, Hkv, n, D]."""
    n_rows, n_heads, head_dim = query.shape
    q = query.view(n_rows, keys.shape[1], n_heads // keys.shape[1], head_dim)
    out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return out.reshape(n_rows, n_heads * head_dim)
