"""The forward pass on CPU in float32: products, and compiled functions for all that lies between.

Called by the engine's step where numba is there; `torch_forward` computes the same without it. Rows of few
tokens attend straight over their pages, whatever their number and lengths; longer prompts by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch

from twolane.engine.batch import Batch
from twolane.engine.compiled import (
    Floats,
    Integers,
    add_norm,
    norm,
    norm_heads,
    place,
    silu_mul,
)
from twolane.engine.compiled_attention import CompiledAttention
from twolane.engine.few_rows import Matrix
from twolane.engine.model import LayerWeights, Model
from twolane.engine.sequence import Row
from twolane.engine.torch_attention import PageAttention
from twolane.engine.torch_plan import Group, PageLayout, groups
from twolane.engine.vector_parts import LANES

# Rows of the MLP at a time: what lies between its two products stays in the processor's cache.
_MLP_ROWS = 256
# Products of queries with keys, times head_dim, up to which a row of several tokens goes token by token: one
# call of torch costs as much.
_DIRECT_WORK = 1 << 18


@dataclass(frozen=True, slots=True)
class _Both:
    """One piece of memory, as torch and as compiled functions see it."""

    tensor: torch.Tensor
    array: Floats

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Both:
        """A contiguous float32 tensor and its memory."""
        return cls(tensor, tensor.numpy())

    def part(self, first: int, end: int) -> _Both:
        """Some of the rows."""
        return _Both(self.tensor[first:end], self.array[first:end])


@dataclass(frozen=True, slots=True)
class _Norms:
    """Norm weights of one layer; `after` is that of the next layer's attention, or the final one."""

    heads: Floats | None
    mlp: Floats
    after: Floats


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The four products of one layer."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix

    @classmethod
    def of(cls, layer: LayerWeights) -> _Matrices:
        """Those of a layer's weights."""
        return cls(
            Matrix(layer.qkv, layer.qkv_bias),
            Matrix(layer.out, layer.out_bias),
            Matrix(layer.gate_up, layer.gate_up_bias),
            Matrix(layer.down, layer.down_bias),
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of a step read: rows and positions of tokens [T, 2], pages, torch's calls by window."""

    tokens: Integers
    table: Integers
    n_direct: int
    groups: dict[int | None, list[Group]]


class CompiledForward:
    """Forward pass over one float32 model and its pool."""

    def __init__(self, model: Model, kv: torch.Tensor) -> None:
        """Takes the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], contiguous."""
        self._model = model
        self._layout = PageLayout(kv.shape[1], kv.shape[3], kv.shape[4])
        self._by_torch = PageAttention(kv, self._layout)
        self._pages = kv.view(-1).numpy()
        self._direct = CompiledAttention(self._pages, model, self._layout)
        self._turns = (model.cos.numpy(), model.sin.numpy())
        self._eps = np.float32(model.spec.norm_eps)
        self._first_norm = model.layers[0].input_norm.numpy()
        following = [layer.input_norm for layer in model.layers[1:]] + [model.final_norm]
        self._norms = [
            _Norms(_array(layer.qk_norm), layer.mlp_norm.numpy(), after.numpy())
            for layer, after in zip(model.layers, following, strict=True)
        ]
        self._matrices = [_Matrices.of(layer) for layer in model.layers]
        self._head = Matrix(model.head, None)
        self._windows = tuple(dict.fromkeys(model.spec.windows))
        self._room: dict[int, _Both] = {}
        # Called with the number of layers whose keys and values are in the pages.
        self.on_layer: Callable[[int], None] | None = None

    @staticmethod
    def serves(model: Model) -> bool:
        """Whether the functions were compiled for such a model."""
        return model.dtype is torch.float32 and model.spec.head_dim % LANES == 0

    def order(self, rows: Rows[Row]) -> list[int]:
        """The order in which to pack `rows`: decode rows, then those of few tokens."""
        many = [index for index, row in enumerate(rows) if row.n_tokens > 1]
        if not many:
            return list(range(len(rows)))
        one = [index for index, row in enumerate(rows) if row.n_tokens == 1]
        starts = {index: rows[index].sequence.n_computed for index in many}
        few = [index for index in many if self._is_direct(starts[index], rows[index].n_tokens)]
        return one + few + [i for i in many if not self._is_direct(starts[i], rows[i].n_tokens)]

    def run(self, rows: Rows[Row], batch: Batch, queue_depth: int = 0) -> torch.Tensor:
        """Computes one step packed in the order that `order` gave; logits [S, vocab_size]."""
        del rows, queue_depth
        model = self._model
        step = self._plan(batch)
        stream = _Both.of(model.embed(torch.from_numpy(batch.ids)))
        hidden = self._take(model.spec.hidden_size, len(batch.ids))
        norm(stream.array, self._first_norm, self._eps, hidden.array)
        for number in range(model.spec.n_layers):
            attended = self._attend(number, hidden.tensor, step)
            if self.on_layer is not None:
                self.on_layer(number + 1)
            if number == model.spec.n_layers - 1 and len(batch.sampled) != len(batch.ids):
                # Only sampled tokens go on: what follows mixes no tokens.
                if not batch.sampled:
                    return attended.new_empty(0, model.spec.vocab_size)
                last = torch.from_numpy(batch.last)
                attended, stream = attended[last], _Both.of(stream.tensor[last])
                hidden = hidden.part(0, len(last))
            self._complete(number, attended, stream, hidden)
        return self._head.times(hidden.tensor) if model.ranks is None else model.logits(hidden.tensor)

    def _plan(self, batch: Batch) -> _Step:
        n_direct_rows = batch.n_decode
        while n_direct_rows < len(batch.order) and self._is_direct(
            int(batch.starts[n_direct_rows]), int(batch.lengths[n_direct_rows])
        ):
            n_direct_rows += 1
        tokens = np.empty((len(batch.positions), 2), dtype=np.int64)
        tokens[:, 0] = batch.row_of if len(tokens) > len(batch.order) else np.arange(len(tokens))
        tokens[:, 1] = batch.positions
        n_direct = int(batch.ends[n_direct_rows - 1]) if n_direct_rows else 0
        found: dict[int | None, list[Group]] = {}
        if n_direct < len(tokens):
            dtype = self._model.dtype
            for window in self._windows:
                found[window] = groups(batch, self._layout, window, dtype, n_direct_rows)
        return _Step(tokens, batch.table, n_direct, found)

    def _is_direct(self, start: int, n_tokens: int) -> bool:
        pairs = n_tokens * (start + n_tokens) * self._model.n_heads
        return pairs * self._model.spec.head_dim <= _DIRECT_WORK

    def _take(self, width: int, n_rows: int) -> _Both:
        """Rows of memory kept from step to step, one piece for each width."""
        held = self._room.get(width)
        if held is None or held.tensor.shape[0] < n_rows:
            held = self._room[width] = _Both.of(torch.empty(n_rows, width))
        return held if held.tensor.shape[0] == n_rows else held.part(0, n_rows)

    def _attend(self, number: int, hidden: torch.Tensor, step: _Step) -> torch.Tensor:
        """Stores keys and values in pages and attends; returns [T, Hq * D]."""
        n_heads, size = self._model.n_heads, self._model.spec.head_dim
        heads = self._matrices[number].qkv.times(hidden).view(len(step.tokens), -1, size)
        array, weight = heads.numpy(), self._norms[number].heads
        if weight is not None:
            norm_heads(array, weight, self._eps)
        place(array, self._turns, self._pages, step.tokens, step.table, self._direct.numbers[number])
        attended = torch.empty(len(step.tokens), n_heads * size)
        self._direct.attend(number, array, step.tokens[: step.n_direct], step.table, attended.numpy())
        for group in step.groups.get(self._model.spec.windows[number], ()):
            part = attended[group.start : group.end]
            part.copy_(self._by_torch.attend(group, number, heads[:, :n_heads], heads[:, n_heads:]))
        return attended

    def _complete(self, number: int, attended: torch.Tensor, stream: _Both, hidden: _Both) -> None:
        """What follows attention in a layer, and the norm that the next one begins with."""
        n_rows = attended.shape[0]
        if n_rows <= _MLP_ROWS or self._model.ranks is not None:
            self._complete_part(number, attended, stream, hidden)
            return
        for first in range(0, n_rows, _MLP_ROWS):
            end = min(first + _MLP_ROWS, n_rows)
            self._complete_part(number, attended[first:end], stream.part(first, end), hidden.part(first, end))

    def _complete_part(self, number: int, attended: torch.Tensor, stream: _Both, hidden: _Both) -> None:
        matrices, norms, ranks = self._matrices[number], self._norms[number], self._model.ranks
        out = matrices.out.times(attended)
        out = out if ranks is None else ranks.sum(out)
        add_norm(stream.array, out.numpy(), norms.mlp, self._eps, hidden.array)
        gate_up = matrices.gate_up.times(hidden.tensor)
        inner = torch.empty(gate_up.shape[0], self._model.inner)
        silu_mul(gate_up.numpy(), inner.numpy())
        down = matrices.down.times(inner)
        down = down if ranks is None else ranks.sum(down)
        add_norm(stream.array, down.numpy(), norms.after, self._eps, hidden.array)


def _array(weight: torch.Tensor | None) -> Floats | None:
    return None if weight is None else weight.numpy()
