"""What config.json says about a model, checked and in our words; everything the engine can't run is refused
here.

`Engine.load` reads it first, before any weight is touched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twolane.core.errors import ConfigError
from twolane.engine.rope import RopeSpec

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and switches of one model.

    Attributes:
        windows: per layer, how many last tokens attention sees; None is all.
        qkv_bias, out_bias, mlp_bias: which projections add a bias.
        qk_norm: queries and keys are normalised per head before rotation.
        tied: the output layer is the embedding.
        max_position: longest context the rotary parameters are meant for, scaling included.
        dtype: element type the checkpoint declares, or "float32".
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    max_position: int
    dtype: str
    eos_token_ids: frozenset[int]

    def page_bytes(self, page_tokens: int, element_bytes: int) -> int:
        """Bytes of one page: keys and values of `page_tokens` tokens over all layers."""
        return self.n_layers * 2 * self.n_kv_heads * page_tokens * self.head_dim * element_bytes


def read_json(path: Path, purpose: str) -> dict[str, Any]:
    """Reads a JSON object of a model folder.

    Raises:
        ConfigError: the folder or file is missing, unreadable or no JSON object; names the file and its
            purpose.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"model folder {path.parent} does not exist; give a Hugging Face model folder")
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; it holds {purpose}: download the whole model folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, not a {type(value).__name__}; download it again")
    return value


def read_spec(model_dir: Path) -> ModelSpec:
    """Reads and checks config.json.

    Raises:
        ConfigError: missing or malformed file, unknown architecture, or a feature the engine does not have.
    """
    path = model_dir / "config.json"
    raw = _Fields(path, read_json(path, "the model's shapes"))
    architecture = _architecture(raw)
    _refuse_unsupported(raw)
    n_heads, hidden = raw.size("num_attention_heads"), raw.size("hidden_size")
    n_kv_heads = raw.size("num_key_value_heads", n_heads)
    head_dim = raw.size("head_dim", hidden // n_heads)
    if n_heads % n_kv_heads != 0:
        raise raw.error(
            "num_attention_heads", f"{n_heads} is not a multiple of num_key_value_heads {n_kv_heads}"
        )
    if head_dim % 2 != 0:
        raise raw.error("head_dim", f"{head_dim} must be even for rotary embedding")
    n_layers = raw.size("num_hidden_layers")
    rope, max_position = _rope(raw)
    is_qwen = architecture.startswith("Qwen")
    attention_bias = False if architecture == "MistralForCausalLM" else raw.flag("attention_bias")
    return ModelSpec(
        architecture=architecture,
        vocab_size=raw.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=raw.size("intermediate_size"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=raw.number("rms_norm_eps", 1e-6),
        rope=rope,
        windows=_windows(raw, architecture, n_layers),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        out_bias=architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and attention_bias,
        mlp_bias=not is_qwen and architecture != "MistralForCausalLM" and raw.flag("mlp_bias"),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tied=raw.flag("tie_word_embeddings"),
        max_position=max_position,
        dtype=str(raw.values.get("dtype") or raw.values.get("torch_dtype") or "float32"),
        eos_token_ids=token_ids(raw.values.get("eos_token_id"), path, "eos_token_id"),
    )


def token_ids(value: object, path: Path, key: str) -> frozenset[int]:
    """An id, a list of ids or null as a set. Raises ConfigError naming the file and key for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise ConfigError(f"{path}: {key} must be a token id or a list of them, not {value!r}")
    return frozenset(ids)


class _Fields:
    """Typed reading of one JSON object; every complaint names file and key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def error(self, key: str, complaint: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {complaint}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, f"a whole number above zero is needed, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
            or value <= 0
        ):
            raise self.error(key, f"a number above zero is needed, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"true or false is needed, not {value!r}")
        return value


def _architecture(raw: _Fields) -> str:
    names = raw.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise raw.error("architectures", f"{name!r} is not served; served are {', '.join(ARCHITECTURES)}")
    return str(name)


def _refuse_unsupported(raw: _Fields) -> None:
    if raw.values.get("quantization_config"):
        raise raw.error(
            "quantization_config", "quantised weights are not served; use the unquantised checkpoint"
        )
    activation = raw.values.get("hidden_act", "silu")
    if activation != "silu":
        raise raw.error("hidden_act", f"{activation!r} is not served, only 'silu'")
    if raw.number("partial_rotary_factor", 1.0) != 1.0:
        raise raw.error("partial_rotary_factor", "only 1.0 is served")


def _windows(raw: _Fields, architecture: str, n_layers: int) -> tuple[int | None, ...]:
    """Sliding windows: Mistral on every layer, Qwen on the layers it names, Llama never."""
    if architecture == "LlamaForCausalLM" or raw.values.get("sliding_window") is None:
        return (None,) * n_layers
    if architecture == "MistralForCausalLM":
        return (raw.size("sliding_window"),) * n_layers
    if not raw.flag("use_sliding_window"):
        return (None,) * n_layers
    window = raw.size("sliding_window")
    kinds = raw.values.get("layer_types")
    if kinds is None:
        first = raw.size("max_window_layers", 28) if raw.values.get("max_window_layers") != 0 else 0
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(n_layers)]
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise raw.error("layer_types", f"a list of {n_layers} entries is needed")
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise raw.error(
            "layer_types", f"only full_attention and sliding_attention are served, not {set(kinds)}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(raw: _Fields) -> tuple[RopeSpec, int]:
    """Rotary parameters in either spelling, and the longest context they serve."""
    values = raw.values.get("rope_parameters") or raw.values.get("rope_scaling") or {}
    if not isinstance(values, dict):
        raise raw.error("rope_scaling", f"an object is needed, not {values!r}")
    given = _Fields(raw.path, values)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in _ROPE_KINDS:
        raise raw.error("rope_scaling", f"type {kind!r} is not served; served are {', '.join(_ROPE_KINDS)}")
    if given.number("partial_rotary_factor", 1.0) != 1.0:
        raise raw.error("partial_rotary_factor", "only 1.0 is served")
    theta = given.number("rope_theta", raw.number("rope_theta", 10000.0))
    longest = raw.size("max_position_embeddings")
    if kind == "default":
        return RopeSpec(kind, theta), longest
    original = given.size("original_max_position_embeddings", longest)
    factor = given.number("factor", longest / original if kind == "yarn" else None)
    if kind == "linear":
        return RopeSpec(kind, theta, factor), int(longest * factor)
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        return RopeSpec(kind, theta, factor, original, low_freq_factor=low, high_freq_factor=high), longest
    return _yarn(given, theta, factor, original), max(longest, int(original * factor))


def _yarn(given: _Fields, theta: float, factor: float, original: int) -> RopeSpec:
    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, mscale_all = given.number("mscale", 1.0), given.values.get("mscale_all_dim")
    inferred = magnitude(1.0)
    if given.values.get("mscale") and mscale_all:
        inferred = magnitude(mscale) / magnitude(given.number("mscale_all_dim"))
    return RopeSpec(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=given.number("beta_fast", 32.0),
        beta_slow=given.number("beta_slow", 1.0),
        truncate=given.flag("truncate", True),
        attention_factor=given.number("attention_factor", inferred),
    )
