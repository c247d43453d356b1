"""Engine profiles as JSON files: one format for those that come with twolane and those that are measured.

`twolane profile` writes one, `twolane simulate --profile` takes a built-in name or a file.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from twolane.core.errors import ConfigError
from twolane.sim.profile import EngineProfile

FORMAT = 1
BUILT_IN = ("h100_qwen3_8b", "h200_qwen3_8b")
DEFAULT = "h100_qwen3_8b"
# Where a number may be 0, and where a file may leave it out.
POSITIVE = ("kv_bytes_per_token", "capacity_tokens", "transfer_bytes_per_s")
COUNTS = ("kv_bytes_per_token", "capacity_tokens", "graph_tokens")
OPTIONAL = {item.name for item in fields(EngineProfile) if item.default is None or item.default == 0.0}


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """A profile with where it comes from.

    Attributes:
        name: for reports.
        model: the model and its number type.
        device: what computes.
        measured: whether steps were timed, else the numbers are derived; notes say how.
        profile: the numbers.
        notes: sentences about their origin.
        fit: how well the numbers describe the measured steps; empty unless measured.
        machine: facts of the machine; empty unless measured.
    """

    name: str
    model: str
    device: str
    measured: bool
    profile: EngineProfile
    notes: tuple[str, ...] = ()
    fit: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> bytes:
        """The file's content."""
        document = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "device": self.device,
            "measured": self.measured,
            "profile": {key: value for key, value in asdict(self.profile).items() if value is not None},
            "notes": list(self.notes),
            "fit": dict(self.fit),
            "machine": dict(self.machine),
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"


def parse_profile(content: bytes, source: str) -> ProfileFile:
    """Reads a profile.

    Args:
        content: the JSON.
        source: what to call it in errors.

    Raises:
        ConfigError: it is no profile of this format; the message names what is wrong.
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{source} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"{source} is no profile of format {FORMAT}; make one with `twolane profile`")
    numbers = document.get("profile")
    if not isinstance(numbers, dict):
        raise ConfigError(f"{source} has no object `profile`")
    return ProfileFile(
        str(document.get("name", source)),
        str(document.get("model", "")),
        str(document.get("device", "")),
        bool(document.get("measured", False)),
        EngineProfile(**_numbers(numbers, source)),
        tuple(str(note) for note in document.get("notes", ())),
        dict(document.get("fit") or {}),
        dict(document.get("machine") or {}),
    )


def _numbers(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    names = {item.name for item in fields(EngineProfile)}
    if unknown := set(found) - names:
        raise ConfigError(f"{source}: unknown numbers {', '.join(sorted(unknown))}")
    if missing := names - OPTIONAL - set(found):
        raise ConfigError(f"{source} lacks {', '.join(sorted(missing))}")
    for name, value in found.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        least = "above 0" if name in POSITIVE else "of at least 0"
        if not good or value < 0 or (name in POSITIVE and value == 0):
            raise ConfigError(f"{source}: {name} must be a number {least}, not {value!r}")
    return {name: int(value) if name in COUNTS else float(value) for name, value in found.items()}


def load_profile(name_or_path: str) -> ProfileFile:
    """A built-in profile by name, or a file.

    Raises:
        ConfigError: there is neither, or the file is malformed.
    """
    if name_or_path in BUILT_IN:
        return _built_in(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(BUILT_IN)
        raise ConfigError(
            f"no engine profile {name_or_path!r}: it is no file, and the built-in ones are {known}"
        )
    return parse_profile(path.read_bytes(), path.name)


@cache
def _built_in(name: str) -> ProfileFile:
    resource = importlib.resources.files("twolane.sim") / "profiles" / f"{name}.json"
    return parse_profile(resource.read_bytes(), resource.name)


def profile_by_name(name_or_path: str) -> EngineProfile:
    """The numbers of `load_profile`."""
    return load_profile(name_or_path).profile
