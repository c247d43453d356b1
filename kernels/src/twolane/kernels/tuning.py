"""Chooses block sizes, warps and stages of a launch, and remembers measured choices on disk.

Called by the host wrappers with a few candidates, the safest first. Measuring happens only inside
``measuring()`` (the engine's warm-up and the benches); serving never stalls on it: it takes the remembered
choice, or the first candidate. One JSON file per device, Triton version and kernel source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.errors import TritonError

from twolane.kernels.launch import INTERPRETED

CACHE_FOLDER_VARIABLE = "TWOLANE_KERNEL_CACHE_DIR"
_TRIAL_MS = 40
_WARM_UP_MS = 10
# What a failure inside the compiler says; other errors of this type are the device's, and final.
_COMPILER_FAILED = "PassManager"

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class LaunchConfig:
    """Warps, pipeline stages and block sizes (name of the kernel's constexpr → value) of one launch."""

    num_warps: int
    num_stages: int = 1
    blocks: Mapping[str, int] = field(default_factory=dict)

    def options(self) -> dict[str, int]:
        """The keyword arguments of a Triton launch: compile options and block sizes."""
        return {**self.compile_options(), **self.blocks}

    def compile_options(self) -> dict[str, int]:
        """Compile options alone. Fused multiply-add is named because its default differs between Tritons."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


Trial = Callable[[LaunchConfig], object]


def config(num_warps: int, num_stages: int = 1, **blocks: int) -> LaunchConfig:
    """Shorthand used by the candidate tables of the kernels."""
    return LaunchConfig(num_warps, num_stages, blocks)


def _median_ms(run: Callable[[], object]) -> float:
    quantiles = triton.testing.do_bench(run, warmup=_WARM_UP_MS, rep=_TRIAL_MS, quantiles=[0.5])
    return float(quantiles[0] if isinstance(quantiles, list) else quantiles)


class ChoiceCache:
    """Measured choices of one device: in memory, backed by one JSON file that is replaced atomically."""

    def __init__(self, path: Path, timer: Timer = _median_ms) -> None:
        self._path = path
        self._timer = timer
        self._choices: dict[str, LaunchConfig] = self._read()

    def get(self, key: str) -> LaunchConfig | None:
        """The remembered choice, if any."""
        return self._choices.get(key)

    def measure(self, key: str, candidates: Sequence[LaunchConfig], trial: Trial) -> LaunchConfig:
        """Time every candidate, remember the fastest; one that this device or compiler can't have is skipped.

        Without memory to measure in it's the first, not remembered. Raises RuntimeError when none of them
        runs.
        """
        timings: list[tuple[float, int]] = []
        failures: list[str] = []
        for index, candidate in enumerate(candidates):
            try:
                timings.append((self._timer(partial(trial, candidate)), index))
            except torch.OutOfMemoryError:
                return candidates[0]
            except (TritonError, RuntimeError) as error:
                if not isinstance(error, TritonError) and _COMPILER_FAILED not in str(error):
                    raise
                failures.append(f"{candidate}: {error}")
        if not timings:
            raise RuntimeError(f"no launch configuration of {key} fits this device: {'; '.join(failures)}")
        best = candidates[min(timings)[1]]
        self._choices[key] = best
        self._write()
        return best

    def _read(self) -> dict[str, LaunchConfig]:
        try:
            stored: dict[str, dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: LaunchConfig(**value) for key, value in stored.items()}
        except OSError:
            return {}
        except (ValueError, TypeError, AttributeError):
            # A damaged cache costs one more measurement, never a start.
            return {}

    def _write(self) -> None:
        # Another process may have added keys since: merge what is on disk, then replace the file in one step.
        self._choices = {**self._read(), **self._choices}
        payload = {
            key: {"num_warps": value.num_warps, "num_stages": value.num_stages, "blocks": dict(value.blocks)}
            for key, value in sorted(self._choices.items())
        }
        # A folder that can't be written, in a locked container say, costs a measurement at every start.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, suffix=".tmp")
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(payload, stream, indent=1)
            os.replace(temporary, self._path)


_caches: dict[int, ChoiceCache] = {}
# Operations to be measured: None is none of them, no names are all.
_measuring: ContextVar[tuple[str, ...] | None] = ContextVar("measuring", default=None)


@contextlib.contextmanager
def measuring(*ops: str) -> Iterator[None]:
    """Within this block, a shape class seen for the first time is measured and remembered.

    Every candidate has to be compiled for it, which takes seconds each: with ``ops``, only theirs.
    """
    token = _measuring.set(ops)
    try:
        yield
    finally:
        _measuring.reset(token)


def choose(
    op: str,
    shape_class: tuple[object, ...],
    candidates: Sequence[LaunchConfig],
    make_trial: Callable[[], Trial],
    device: torch.device,
) -> LaunchConfig:
    """The launch configuration for this operation and shape class.

    ``make_trial`` is called only to measure; the trial it returns runs the kernel once with a candidate and
    works on scratch copies of whatever the kernel writes. Under the interpreter, or with one candidate, it's
    the first.
    """
    if INTERPRETED or len(candidates) == 1 or device.type != "cuda":
        return candidates[0]
    index = device.index or 0
    cache = _caches.get(index)
    if cache is None:
        cache = _caches[index] = ChoiceCache(cache_path(torch.cuda.get_device_name(index)))
    key = f"{op}/" + ",".join(str(part) for part in shape_class)
    known = cache.get(key)
    if known is not None:
        return known
    ops = _measuring.get()
    if ops is None or (ops and op not in ops) or torch.cuda.is_current_stream_capturing():
        return candidates[0]
    return cache.measure(key, candidates, make_trial())


def cache_path(device_name: str) -> Path:
    """File of the choices for a device: a new Triton or an edited kernel starts a new one."""
    folder = os.environ.get(CACHE_FOLDER_VARIABLE)
    root = Path(folder) if folder else Path.home() / ".cache" / "twolane" / "kernels"
    device = "".join(letter if letter.isalnum() else "-" for letter in device_name)
    return root / f"{device}-triton{triton.__version__}-{_source_digest()}.json"


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
