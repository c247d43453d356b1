"""What a router must know of a model besides its tokenizer, read from a Hugging Face folder.

The context length, the tokens that end an answer and the default way of drawing tokens. Read once
at the start; a folder that lacks something stops the process with a ConfigError that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twolane.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json says where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Facts of one model.

    Attributes:
        path: the folder.
        vocab_size: rows of the embedding; token ids lie below.
        max_model_len: longest prompt plus answer that the model was built for, in tokens.
        eos_token_ids: tokens that end an answer.
        defaults: sampling defaults.
    """

    path: Path
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def read_model_folder(path: Path) -> ModelFolder:
    """Reads config.json and generation_config.json.

    Raises:
        ConfigError: the folder or config.json is missing, malformed, or lacks a needed field.
    """
    config = _read_json(path / "config.json", needed=True)
    generation = _read_json(path / "generation_config.json", needed=False)
    return ModelFolder(
        path=path,
        vocab_size=_integer(config, "vocab_size", path),
        max_model_len=_integer(config, "max_position_embeddings", path),
        eos_token_ids=_eos_ids(generation) | _eos_ids(config),
        defaults=_defaults(generation, path),
    )


def _read_json(path: Path, *, needed: bool) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            raise ConfigError(f"{path} is missing: model_dir must be a Hugging Face model folder") from None
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _integer(config: dict[str, Any], name: str, path: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{path / 'config.json'} must give {name} as a positive integer, not {value!r}")
    return value


def _eos_ids(config: dict[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return frozenset(item for item in ids if isinstance(item, int) and not isinstance(item, bool))


def _defaults(generation: dict[str, Any], path: Path) -> SamplingDefaults:
    try:
        return SamplingDefaults(
            temperature=_number(generation, "temperature", 1.0),
            top_p=_number(generation, "top_p", 1.0),
            top_k=int(_number(generation, "top_k", 0)),
            repetition_penalty=_number(generation, "repetition_penalty", 1.0),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path / 'generation_config.json'} has a malformed value: {error}") from error


def _number(config: dict[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    return default if value is None else float(value)
