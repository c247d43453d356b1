"""What generation_config.json recommends: stop tokens and sampling defaults of a model.

Read at load; the router resolves a request's missing sampling fields with these defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twolane.core.errors import ConfigError
from twolane.engine.spec import ModelSpec, read_json, token_ids


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Sampling fields of the model's makers; the neutral value where they say nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Stop tokens and sampling defaults."""

    eos_token_ids: frozenset[int]
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


def read_generation(model_dir: Path, spec: ModelSpec) -> GenerationDefaults:
    """Reads generation_config.json; without that file the stop tokens are those of config.json.

    Raises:
        ConfigError: the file is there but malformed.
    """
    path = model_dir / "generation_config.json"
    if not path.exists():
        return GenerationDefaults(spec.eos_token_ids)
    raw = read_json(path, "sampling defaults")
    eos = token_ids(raw.get("eos_token_id"), path, "eos_token_id") or spec.eos_token_ids
    sampling = SamplingDefaults(
        temperature=_number(raw, path, "temperature", 1.0),
        top_p=_number(raw, path, "top_p", 1.0),
        top_k=int(_number(raw, path, "top_k", 0)),
        min_p=_number(raw, path, "min_p", 0.0),
        repetition_penalty=_number(raw, path, "repetition_penalty", 1.0),
    )
    return GenerationDefaults(eos, sampling)


def _number(raw: dict[str, Any], path: Path, key: str, default: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{path}: {key} must be a number, not {value!r}")
    return float(value)
