"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: parameters, forward
pass.

One class serves all four, they differ in biases, head norms and windows (`ModelSpec`). Query, key and value
weights are one matrix, gate and up another. Forward passes are built on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twolane.engine.packed import PackedRows, can_pack, pack, product
from twolane.engine.parallel import Ranks, Shard
from twolane.engine.rope import rotary_tables
from twolane.engine.spec import ModelSpec

# Up to this size a tied embedding is kept twice: rows of the packed form lie scattered, and cost a step more.
_SMALL_BYTES = 32 << 20


@dataclass(slots=True)
class LayerWeights:
    """Parameters of one layer; matrices are [out, in], biases None where the family has none.

    Attributes:
        qk_norm: norm weights of all query and key heads [Hq + Hkv, D], or None.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Model:
    """Weights of one rank of a model (all of them without tensor parallelism), and the maps that join ranks.

    Attributes:
        n_heads, n_kv_heads: heads of this rank.
        inner: columns of the MLP on this rank.
        ranks: connection to the other ranks, or None; set before the first step.
    """

    def __init__(
        self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, n_positions: int, shard: Shard
    ) -> None:
        """Allocates parameters (uninitialised) and rotary tables for `n_positions`."""
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self.shard = shard
        self.ranks: Ranks | None = None
        self.n_heads, self.n_kv_heads = spec.n_heads // shard.size, spec.n_kv_heads // shard.size
        self.inner = spec.intermediate_size // shard.size
        self._packs = device.type == "cpu" and can_pack(dtype)
        self._packed_rows: PackedRows | None = None
        self.embedding = self._matrix(spec.vocab_size, spec.hidden_size)
        mine = shard.part(spec.vocab_size)
        self.head = (
            self.embedding[mine] if spec.tied else self._matrix(mine.stop - mine.start, spec.hidden_size)
        )
        self.final_norm = self._empty(spec.hidden_size)
        self.layers = [self._layer() for _ in range(spec.n_layers)]
        cos, sin = rotary_tables(spec.rope, spec.head_dim, n_positions, dtype)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, a fresh tensor [T, hidden_size]."""
        if self._packed_rows is not None:
            return self._packed_rows.select(ids)
        return self.embedding.index_select(0, ids)

    def pack(self) -> None:
        """Puts the processor's own form of each matrix in its place, one by one; called once all are filled.

        A matrix packed is a matrix freed: two copies exist of one matrix at a time. Does nothing on a GPU.
        """
        if not self._packs:
            return
        for layer in self.layers:
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(layer, name, pack(getattr(layer, name)))
        if not self.spec.tied or self.embedding.nbytes <= _SMALL_BYTES:
            self.head = pack(self.head)
        elif self.shard.size == 1:
            packed = pack(self.embedding)
            self._packed_rows = PackedRows.of(packed, self.embedding)
            if self._packed_rows is not None:
                self.head = self.embedding = packed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output layer on normalised rows: [S, vocab_size], on rank 0 alone where there are several."""
        part = product(hidden, self.head)
        if self.ranks is None:
            return part
        width = -(-self.spec.vocab_size // self.shard.size)
        return self.ranks.gather(part, width)[:, : self.spec.vocab_size]

    def add_out(self, residual: torch.Tensor, attended: torch.Tensor, layer: LayerWeights) -> None:
        """Adds the attention's output projection to the residual stream, in place."""
        if self.ranks is not None:
            residual.add_(self.project_out(attended, layer))
        else:
            _add_linear(residual, attended, layer.out, layer.out_bias)

    def add_down(self, residual: torch.Tensor, inner: torch.Tensor, layer: LayerWeights) -> None:
        """Adds the MLP's down projection to the residual stream, in place."""
        if self.ranks is not None:
            residual.add_(self.project_down(inner, layer))
        else:
            _add_linear(residual, inner, layer.down, layer.down_bias)

    def project_out(self, attended: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """The attention's output projection over all ranks [T, hidden_size], for the residual stream."""
        partial = product(attended, layer.out, layer.out_bias)
        return partial if self.ranks is None else self.ranks.sum(partial)

    def project_down(self, inner: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """The MLP's down projection over all ranks [T, hidden_size], for the residual stream."""
        partial = product(inner, layer.down, layer.down_bias)
        return partial if self.ranks is None else self.ranks.sum(partial)

    def _layer(self) -> LayerWeights:
        spec, hidden = self.spec, self.spec.hidden_size
        n_rotated = self.n_heads + self.n_kv_heads
        n_fused = (n_rotated + self.n_kv_heads) * spec.head_dim
        # Sums over ranks must count a bias once.
        first = self.shard.rank == 0
        return LayerWeights(
            input_norm=self._empty(hidden),
            qkv=self._matrix(n_fused, hidden),
            qkv_bias=self._empty(n_fused) if spec.qkv_bias else None,
            qk_norm=self._empty(n_rotated, spec.head_dim) if spec.qk_norm else None,
            out=self._matrix(hidden, self.n_heads * spec.head_dim),
            out_bias=self._empty(hidden) if spec.out_bias and first else None,
            mlp_norm=self._empty(hidden),
            gate_up=self._matrix(2 * self.inner, hidden),
            gate_up_bias=self._empty(2 * self.inner) if spec.mlp_bias else None,
            down=self._matrix(hidden, self.inner),
            down_bias=self._empty(hidden) if spec.mlp_bias and first else None,
        )

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _matrix(self, n_out: int, n_in: int) -> torch.Tensor:
        """A matrix [out, in]; one that stays plain on CPU is input-major, which few rows are faster with."""
        if self.device.type == "cpu" and not self._packs:
            return self._empty(n_in, n_out).t()
        return self._empty(n_out, n_in)


def _add_linear(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    if weight.is_mkldnn:
        residual.add_(product(x, weight, bias))
        return
    # The product is summed where it lands: one pass less than a separate sum.
    residual.addmm_(x, weight.t())
    if bias is not None:
        residual.add_(bias)
