"""Where each tensor of a Hugging Face checkpoint goes in a model's fused and sharded matrices.

Called at load. Query, key and value projections are rows of one matrix, gate and up of another; under tensor
parallelism a rank takes its rows of those, its columns of the output and down projections, and its rows of
the head.
"""

from __future__ import annotations

import torch

from twolane.engine.model import LayerWeights, Model
from twolane.engine.weights import Slot


def checkpoint_slots(model: Model) -> dict[str, Slot]:
    """Slots by tensor name, for `Checkpoint.check` and `Checkpoint.fill`."""
    spec = model.spec
    slots = {
        "model.embed_tokens.weight": Slot(model.embedding, (spec.vocab_size, spec.hidden_size)),
        "model.norm.weight": Slot(model.final_norm, (spec.hidden_size,)),
    }
    if not spec.tied:
        slots["lm_head.weight"] = _split(model, model.head, (spec.vocab_size, spec.hidden_size), 0)
    for number, layer in enumerate(model.layers):
        for name, slot in (_attention_slots(model, layer) | _mlp_slots(model, layer)).items():
            slots[f"model.layers.{number}.{name}"] = slot
    return slots


def _attention_slots(model: Model, layer: LayerWeights) -> dict[str, Slot]:
    spec, head_dim = model.spec, model.spec.head_dim
    n_queries = spec.n_heads * head_dim
    slots = {
        "input_layernorm.weight": Slot(layer.input_norm, (spec.hidden_size,)),
        "self_attn.o_proj.weight": _split(model, layer.out, (spec.hidden_size, n_queries), 1),
    }
    if layer.out_bias is not None:
        slots["self_attn.o_proj.bias"] = Slot(layer.out_bias, (spec.hidden_size,))
    if layer.qk_norm is not None:
        # One weight for all heads of a kind: copied to each.
        slots["self_attn.q_norm.weight"] = Slot(layer.qk_norm[: model.n_heads], (head_dim,))
        slots["self_attn.k_norm.weight"] = Slot(layer.qk_norm[model.n_heads :], (head_dim,))
    begin = 0
    for letter, mine, total in (
        ("q", model.n_heads, spec.n_heads),
        ("k", model.n_kv_heads, spec.n_kv_heads),
        ("v", model.n_kv_heads, spec.n_kv_heads),
    ):
        rows = slice(begin, begin + mine * head_dim)
        begin = rows.stop
        name = f"self_attn.{letter}_proj"
        slots[f"{name}.weight"] = _split(model, layer.qkv[rows], (total * head_dim, spec.hidden_size), 0)
        if layer.qkv_bias is not None:
            slots[f"{name}.bias"] = _split(model, layer.qkv_bias[rows], (total * head_dim,), 0)
    return slots


def _mlp_slots(model: Model, layer: LayerWeights) -> dict[str, Slot]:
    spec = model.spec
    hidden, inner = spec.hidden_size, spec.intermediate_size
    slots = {
        "post_attention_layernorm.weight": Slot(layer.mlp_norm, (hidden,)),
        "mlp.down_proj.weight": _split(model, layer.down, (hidden, inner), 1),
    }
    if layer.down_bias is not None:
        slots["mlp.down_proj.bias"] = Slot(layer.down_bias, (hidden,))
    for place, word in enumerate(("gate", "up")):
        rows = slice(place * model.inner, (place + 1) * model.inner)
        slots[f"mlp.{word}_proj.weight"] = _split(model, layer.gate_up[rows], (inner, hidden), 0)
        if layer.gate_up_bias is not None:
            slots[f"mlp.{word}_proj.bias"] = _split(model, layer.gate_up_bias[rows], (inner,), 0)
    return slots


def _split(model: Model, target: torch.Tensor, shape: tuple[int, ...], axis: int) -> Slot:
    """A slot that takes this rank's part of `axis`."""
    if model.shard.size == 1:
        return Slot(target, shape)
    return Slot(target, shape, axis, model.shard.part(shape[axis]))
