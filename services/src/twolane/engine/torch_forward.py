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
from twolane.engine.torch_attention import PageAttention
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
        rows = kv.view(-1, kv.shape[5])
        # One view per layer, so that the same indices serve all layers.
        self._rows = [rows[start * layout.page_tokens :] for start in layout.layer_starts]
        self._attention = PageAttention(kv, layout)
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
        parts += [self._attention.attend(group, layer, query, new) for group in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
