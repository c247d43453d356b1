"""The forward pass in plain torch: the path of CPU engines, exact against transformers in float32.

Called by the engine's step. The residual stream is updated in place by the matrix products themselves; query
heads that share a key head are folded into the query axis, so no key is repeated for decode.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch.nn import functional

from twolane.engine.batch import Batch, decode_first
from twolane.engine.decode_copy import DecodeCopy
from twolane.engine.dense_rows import Use
from twolane.engine.model import LayerWeights, Model
from twolane.engine.packed import product
from twolane.engine.sequence import Row
from twolane.engine.torch_plan import Group, PageLayout, groups, write_rows

# Rows of the MLP at a time: what lies between its two products stays in the processor's cache.
_MLP_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Step:
    """What every layer of one step reads.

    Attributes:
        copied: use of the dense copy for all decode rows, or None.
        groups: other attention calls, by window.
    """

    write: torch.Tensor
    copied: Use | None
    groups: dict[int | None, list[Group]]
    cos: torch.Tensor
    sin: torch.Tensor


class TorchForward:
    """Forward pass over one model and its pool."""

    def __init__(self, model: Model, kv: torch.Tensor, copy_limit_bytes: int) -> None:
        """Takes the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], contiguous.

        Args:
            model: weights.
            kv: the pages.
            copy_limit_bytes: memory for a dense copy of running decode rows; 0 for none.
        """
        self._model = model
        self._layout = layout = PageLayout(kv.shape[1], kv.shape[3], kv.shape[4])
        head_dim = kv.shape[5]
        rows, blocks = kv.view(-1, head_dim), kv.view(-1, layout.page_tokens * head_dim)
        # One view per layer, so that the same indices serve all layers.
        starts = [layer * layout.layer_blocks for layer in range(layout.n_layers)]
        self._rows = [rows[start * layout.page_tokens :] for start in starts]
        self._blocks = [blocks[start:] for start in starts]
        self._scratch = kv.new_empty(0, layout.page_tokens * head_dim)
        self._windows = tuple(dict.fromkeys(model.spec.windows))
        self._copy = DecodeCopy(kv, layout, copy_limit_bytes) if self._windows == (None,) else None
        self._copied = False
        self._eps = torch.tensor(model.spec.norm_eps)
        # Called with the number of layers whose keys and values are in the pages.
        self.on_layer: Callable[[int], None] | None = None

    def order(self, rows: Rows[Row]) -> list[int]:
        """The order in which to pack `rows`."""
        decode = self._copy.arrange(rows) if self._copy is not None else None
        self._copied = decode is not None
        if decode is None:
            return decode_first(rows)
        return decode + [index for index, row in enumerate(rows) if row.n_tokens > 1]

    def run(self, rows: Rows[Row], batch: Batch, queue_depth: int = 0) -> torch.Tensor:
        """Computes one step packed in the order that `order` gave; logits [S, vocab_size]."""
        del queue_depth
        spec, model = self._model.spec, self._model
        step = self._plan(rows, batch)
        residual = model.embed(torch.from_numpy(batch.ids))
        for number, layer in enumerate(model.layers):
            hidden = self._norm(residual, layer.input_norm)
            attended = self._attend(step, number, self._heads(layer, hidden, step))
            if self.on_layer is not None:
                self.on_layer(number + 1)
            if number == spec.n_layers - 1 and len(batch.sampled) != residual.shape[0]:
                # Only sampled tokens go on: what follows mixes no tokens.
                if not batch.sampled:
                    break
                last = torch.from_numpy(batch.last)
                attended, residual = attended[last], residual[last]
            model.add_out(residual, attended, layer)
            if residual.shape[0] <= _MLP_ROWS or model.ranks is not None:
                self._add_mlp(layer, residual)
            else:
                for part in torch.split(residual, _MLP_ROWS):
                    self._add_mlp(layer, part)
        if step.copied is not None and self._copy is not None:
            self._copy.commit(step.copied)
        if not batch.sampled:
            return residual.new_empty(0, spec.vocab_size)
        hidden = self._norm(residual, model.final_norm)
        return model.logits(hidden)

    def _add_mlp(self, layer: LayerWeights, residual: torch.Tensor) -> None:
        """Adds the MLP of normalised rows to the residual stream, in place."""
        hidden = self._norm(residual, layer.mlp_norm)
        gate, up = product(hidden, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        self._model.add_down(residual, functional.silu(gate).mul_(up), layer)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square norm over the last dimension, times the weight."""
        n, eps = x.shape[-1], self._model.spec.norm_eps
        if x.dtype is not torch.float32:
            return functional.rms_norm(x, (n,), None, eps).mul_(weight)
        # Torch's own is made of more, smaller operations.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self._eps, length, length, value=1.0 / n).rsqrt_()).mul_(weight)

    def _plan(self, rows: Rows[Row], batch: Batch) -> _Step:
        copied = None
        if self._copied and self._copy is not None:
            copied = self._copy.prepare(rows, batch, self._model.n_heads)
        first = batch.n_decode if copied is not None else 0
        dtype = self._model.dtype
        positions = torch.from_numpy(batch.positions)
        return _Step(
            write_rows(batch, self._layout),
            copied,
            {window: groups(batch, self._layout, window, dtype, first) for window in self._windows},
            self._model.cos[positions].unsqueeze(1),
            self._model.sin[positions].unsqueeze(1),
        )

    def _heads(self, layer: LayerWeights, hidden: torch.Tensor, step: _Step) -> torch.Tensor:
        """Rotated queries, rotated keys and values side by side [T, Hq + 2 * Hkv, D]."""
        spec, n_heads = self._model.spec, self._model.n_heads
        fused = product(hidden, layer.qkv, layer.qkv_bias)
        heads = fused.view(-1, n_heads + 2 * self._layout.n_kv_heads, spec.head_dim)
        turned = heads[:, : n_heads + self._layout.n_kv_heads]
        plain = turned.clone() if layer.qk_norm is None else self._norm(turned, layer.qk_norm)
        half = spec.head_dim // 2
        torch.mul(plain, step.cos, out=turned)
        turned[..., :half].addcmul_(plain[..., half:], step.sin, value=-1)
        turned[..., half:].addcmul_(plain[..., :half], step.sin)
        return heads

    def _attend(self, step: _Step, layer: int, heads: torch.Tensor) -> torch.Tensor:
        """Stores keys and values in pages and attends; returns [T, Hq * D]."""
        n_heads = self._model.n_heads
        query, new = heads[:, :n_heads], heads[:, n_heads:]
        self._rows[layer].index_put_((step.write,), new)
        found = step.groups[self._model.spec.windows[layer]]
        copied = step.copied
        if copied is not None and self._copy is not None:
            if not found:
                return self._copy.attend(copied, layer, query, new)
            parts = [self._copy.attend(copied, layer, query[: copied.n_rows], new[: copied.n_rows])]
        else:
            parts = []
        parts += [self._group(group, layer, query, new) for group in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """One query per row [B, Hq, D] over keys [B, Hkv, n, D]."""
        n_rows, n_heads, head_dim = query.shape
        q = query.view(n_rows, keys.shape[1], n_heads // keys.shape[1], head_dim)
        out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.reshape(n_rows, n_heads * head_dim)

    def _group(self, group: Group, layer: int, query: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        query = query[group.start : group.end]
        n_queries, n_heads, head_dim = query.shape
        if group.gather is None:
            own = new[group.start : group.end].transpose(0, 1).unsqueeze(0)
            keys, values = own.chunk(2, dim=1)
        else:
            keys, values = self._fetch(group, layer)
            if n_queries == group.n_rows:
                return self._decode(query, keys, values, group.mask)
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
        sides = fetched.view(2, group.n_rows, n_kv_heads, -1, self._model.spec.head_dim)[
            :, :, :, : group.n_keys
        ]
        return sides[0], sides[1]
