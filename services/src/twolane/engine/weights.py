"""Reads a model folder's safetensors: finds the files, checks names, shapes and headers, fills tensors from
the map.

Files are memory-mapped and copied once, straight into the tensors the model computes with, so host memory
holds one copy of the weights plus pages of the file cache that the system can take back. Called by
`engine.Engine.load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from twolane.core.errors import ConfigError
from twolane.engine.spec import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOATS = ("F32", "F16", "BF16")
_HEADER_LIMIT_BYTES = 100_000_000
_TURNED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one checkpoint tensor goes.

    Attributes:
        target: a view with the tensor's shape (or this rank's part of it), in the model's dtype.
        shape: full shape the checkpoint must have.
        axis: dimension that ranks split, or None.
        part: range of that dimension this rank keeps, or None.
    """

    target: torch.Tensor
    shape: tuple[int, ...]
    axis: int | None = None
    part: slice | None = None


def weight_files(model_dir: Path) -> dict[str, list[str] | None]:
    """The folder's weight files in reading order, each with the tensor names the index gives it (None: no
    index).

    Raises:
        ConfigError: no weights, or a shard of the index is missing.
    """
    index_path = model_dir / _INDEX
    if not index_path.exists():
        if not (model_dir / _SINGLE).exists():
            raise ConfigError(
                f"{model_dir} has neither {_SINGLE} nor {_INDEX}; download the safetensors weights"
            )
        return {_SINGLE: None}
    mapping = read_json(index_path, "which shard has which tensor").get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ConfigError(f"{index_path} has no weight_map; download it again")
    files: dict[str, list[str] | None] = {}
    for name, file in sorted(mapping.items(), key=lambda item: (str(item[1]), item[0])):
        if not isinstance(file, str) or Path(file).name != file:
            raise ConfigError(f"{index_path}: weight_map[{name!r}] must be a file name, not {file!r}")
        names = files.setdefault(file, [])
        if names is not None:
            names.append(name)
    for file in files:
        if not (model_dir / file).exists():
            raise ConfigError(f"{model_dir / file} is missing though {_INDEX} lists it; download it")
    return files


def weights_sha256(model_dir: Path, files: Iterable[str]) -> str:
    """Hex SHA-256 over config.json and the header of every weight file: cheap, and tells checkpoints apart.

    Raises:
        ConfigError: a file is too short or its header length is absurd.
    """
    digest = hashlib.sha256((model_dir / "config.json").read_bytes())
    for file in files:
        path = model_dir / file
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            header = stream.read(length) if 2 <= length <= _HEADER_LIMIT_BYTES else b""
        if len(prefix) < 8 or len(header) != length:
            raise ConfigError(
                f"{path} is corrupt: its header is cut off or not safetensors; download it again"
            )
        digest.update(prefix + header)
    return digest.hexdigest()


def tokenizer_sha256(model_dir: Path) -> str:
    """Hex SHA-256 of tokenizer.json. Raises ConfigError when it is missing or no JSON object."""
    path = model_dir / "tokenizer.json"
    # Workers don't encode, but a router of the same folder does: what is wrong must show here already.
    read_json(path, "how text becomes tokens")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _copy(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copies and casts; into an input-major matrix by blocks of rows, so that they turn in the cache."""
    if target.dim() == 2 and target.stride(1) != 1:
        for start in range(0, target.shape[0], _TURNED_ROWS):
            block = slice(start, start + _TURNED_ROWS)
            target[block].copy_(values[block].to(target.dtype))
    else:
        target.copy_(values)


class Checkpoint:
    """The mapped weight files of one folder."""

    def __init__(self, model_dir: Path) -> None:
        """Maps every file and reads its header.

        Raises:
            ConfigError: a file is missing, corrupt, or disagrees with the index.
        """
        self.model_dir = model_dir
        self.file_of: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        for file, listed in weight_files(model_dir).items():
            path = model_dir / file
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path} is corrupt ({error}); download it again") from error
            present = set(handle.keys())  # type: ignore[no-untyped-call]
            for name in listed if listed is not None else sorted(present):
                if name not in present:
                    raise ConfigError(
                        f"{path} lacks tensor {name} that {_INDEX} places there; download both again"
                    )
                self.file_of[name] = file
            self._open[file] = handle
        self.total_bytes = sum((model_dir / file).stat().st_size for file in self._open)
        self.sha256 = weights_sha256(model_dir, self._open)

    def check(self, slots: dict[str, Slot]) -> None:
        """Compares names, shapes and element types with what the model needs, before anything is copied.

        Raises:
            ConfigError: names the file, the first tensor at fault, and both shapes.
        """
        missing = [name for name in slots if name not in self.file_of]
        if missing:
            raise ConfigError(
                f"{self.model_dir}: the weights lack {len(missing)} of {len(slots)} tensors that config.json "
                f"asks for, first {missing[0]}; use weights and config.json of the same model"
            )
        for name, slot in slots.items():
            path = self.model_dir / self.file_of[name]
            view = self._open[self.file_of[name]].get_slice(name)
            shape, kind = tuple(view.get_shape()), view.get_dtype()
            if shape != slot.shape:
                raise ConfigError(
                    f"{path}: {name} has shape {list(shape)} but config.json asks for {list(slot.shape)}; "
                    "use weights and config.json of the same model"
                )
            if kind not in _FLOATS:
                raise ConfigError(f"{path}: {name} has element type {kind}; served are {', '.join(_FLOATS)}")

    def fill(self, slots: dict[str, Slot], progress: Callable[[int], None]) -> None:
        """Copies every slot's tensor, file by file, and tells `progress` the bytes read so far."""
        done_bytes = 0
        for file in list(self._open):
            handle = self._open.pop(file)
            for name in (name for name, owner in self.file_of.items() if owner == file and name in slots):
                slot = slots[name]
                if slot.axis is None:
                    # A view of the map: no copy until the next line.
                    values = handle.get_tensor(name)
                else:
                    values = handle.get_slice(name)[(slice(None),) * slot.axis + (slot.part,)]
                _copy(slot.target, values)
                done_bytes += values.numel() * values.element_size()
                progress(done_bytes)
