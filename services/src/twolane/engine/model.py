"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families: parameters, where the checkpoint goes, forward
pass.

One class serves all four, they differ in biases, head norms and windows (`ModelSpec`). Query, key and value
weights are one matrix, gate and up another. Forward passes are built on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from twolane.engine.rope import rotary_tables
from twolane.engine.spec import ModelSpec
from twolane.engine.weights import Slot


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
    """Weights of one model, and the linear maps that touch the residual stream."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, n_positions: int) -> None:
        """Allocates parameters (uninitialised) and rotary tables for `n_positions`."""
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self.n_heads = spec.n_heads
        self.embedding = self._matrix(spec.vocab_size, spec.hidden_size)
        self.head = self.embedding if spec.tied else self._matrix(spec.vocab_size, spec.hidden_size)
        self.final_norm = self._empty(spec.hidden_size)
        self.layers = [self._layer() for _ in range(spec.n_layers)]
        cos, sin = rotary_tables(spec.rope, spec.head_dim, n_positions, dtype)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def slots(self) -> dict[str, Slot]:
        """Where each checkpoint tensor goes, by its name in Hugging Face folders."""
        hidden = self.spec.hidden_size
        slots = {
            "model.embed_tokens.weight": self._slot(self.embedding, self.spec.vocab_size, hidden),
            "model.norm.weight": self._slot(self.final_norm, hidden),
        }
        if not self.spec.tied:
            slots["lm_head.weight"] = self._slot(self.head, self.spec.vocab_size, hidden)
        for number, layer in enumerate(self.layers):
            for name, slot in self._layer_slots(layer).items():
                slots[f"model.layers.{number}.{name}"] = slot
        return slots

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding, a fresh tensor [T, hidden_size]."""
        return self.embedding.index_select(0, ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output layer on normalised rows: [S, vocab_size]."""
        return functional.linear(hidden, self.head)

    def add_out(self, residual: torch.Tensor, attended: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """Adds the attention's output projection to the residual stream, in place."""
        return self._add_linear(residual, attended, layer.out, layer.out_bias)

    def add_down(self, residual: torch.Tensor, inner: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """Adds the MLP's down projection to the residual stream, in place."""
        return self._add_linear(residual, inner, layer.down, layer.down_bias)

    def project_out(self, attended: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """The attention's output projection [T, hidden_size], to be added to the residual stream."""
        return functional.linear(attended, layer.out, layer.out_bias)

    def project_down(self, inner: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """The MLP's down projection [T, hidden_size], to be added to the residual stream."""
        return functional.linear(inner, layer.down, layer.down_bias)

    def _add_linear(
        self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The product is summed where it lands: one pass less than a separate sum."""
        residual.addmm_(x, weight.t())
        return residual if bias is None else residual.add_(bias)

    def _layer(self) -> LayerWeights:
        spec = self.spec
        hidden, inner = spec.hidden_size, spec.intermediate_size
        n_rotated = spec.n_heads + spec.n_kv_heads
        n_fused = (n_rotated + spec.n_kv_heads) * spec.head_dim
        return LayerWeights(
            input_norm=self._empty(hidden),
            qkv=self._matrix(n_fused, hidden),
            qkv_bias=self._empty(n_fused) if spec.qkv_bias else None,
            qk_norm=self._empty(n_rotated, spec.head_dim) if spec.qk_norm else None,
            out=self._matrix(hidden, spec.n_heads * spec.head_dim),
            out_bias=self._empty(hidden) if spec.out_bias else None,
            mlp_norm=self._empty(hidden),
            gate_up=self._matrix(2 * inner, hidden),
            gate_up_bias=self._empty(2 * inner) if spec.mlp_bias else None,
            down=self._matrix(hidden, inner),
            down_bias=self._empty(hidden) if spec.mlp_bias else None,
        )

    def _layer_slots(self, layer: LayerWeights) -> dict[str, Slot]:
        spec = self.spec
        hidden, inner, head_dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
        q_end = spec.n_heads * head_dim
        k_end = q_end + spec.n_kv_heads * head_dim
        slots = {
            "input_layernorm.weight": self._slot(layer.input_norm, hidden),
            "post_attention_layernorm.weight": self._slot(layer.mlp_norm, hidden),
            "self_attn.o_proj.weight": self._slot(layer.out, hidden, q_end),
            "mlp.down_proj.weight": self._slot(layer.down, hidden, inner),
        }
        if layer.out_bias is not None:
            slots["self_attn.o_proj.bias"] = self._slot(layer.out_bias, hidden)
        if layer.down_bias is not None:
            slots["mlp.down_proj.bias"] = self._slot(layer.down_bias, hidden)
        if layer.qk_norm is not None:
            slots["self_attn.q_norm.weight"] = self._slot(layer.qk_norm[: spec.n_heads], head_dim)
            slots["self_attn.k_norm.weight"] = self._slot(layer.qk_norm[spec.n_heads :], head_dim)
        parts = {"q": slice(0, q_end), "k": slice(q_end, k_end), "v": slice(k_end, None)}
        for letter, part in parts.items():
            slots |= self._projection(f"self_attn.{letter}_proj", part, layer.qkv, layer.qkv_bias)
        for word, part in {"gate": slice(0, inner), "up": slice(inner, None)}.items():
            slots |= self._projection(f"mlp.{word}_proj", part, layer.gate_up, layer.gate_up_bias)
        return slots

    def _projection(
        self, name: str, part: slice, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> dict[str, Slot]:
        target = weight[part]
        slots = {f"{name}.weight": self._slot(target, *target.shape)}
        if bias is not None:
            slots[f"{name}.bias"] = self._slot(bias[part], target.shape[0])
        return slots

    def _slot(self, target: torch.Tensor, *shape: int) -> Slot:
        return Slot(target, shape)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _matrix(self, n_out: int, n_in: int) -> torch.Tensor:
        """A matrix [out, in]; stored input-major on CPU, where products with few rows are faster so."""
        if self.device.type == "cpu":
            return self._empty(n_in, n_out).t()
        return self._empty(n_out, n_in)
