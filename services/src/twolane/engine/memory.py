"""Whether weights, pages and graphs fit the memory there is, told before anything is loaded.

Called by loading once dtype, max_model_len and the pool's size are known.
"""

from __future__ import annotations

from pathlib import Path

import torch

from twolane.core.errors import ConfigError
from twolane.engine.parallel import Shard
from twolane.engine.spec import ModelSpec

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# Largest step by a worker's defaults: prompt tokens and sampled rows.
_STEP_TOKENS, _STEP_ROWS = 2048, 128
# Workspaces of matrix products, and what choosing a kernel's launch configuration takes for a while.
_LIBRARY_BYTES = 384 << 20


def weight_bytes(spec: ModelSpec, element_bytes: int, shard: Shard) -> int:
    """Bytes of one rank's matrices; vectors are left out."""
    heads = spec.n_heads + 2 * spec.n_kv_heads
    layer = spec.hidden_size * ((heads + spec.n_heads) * spec.head_dim + 3 * spec.intermediate_size)
    head = 0 if spec.tied else spec.vocab_size * spec.hidden_size
    split = (spec.n_layers * layer + head) // shard.size
    return (spec.vocab_size * spec.hidden_size + split) * element_bytes


def step_bytes(spec: ModelSpec, element_bytes: int) -> int:
    """Bytes that steps of a CUDA engine take beside weights and pool: activations, logits, libraries' own.

    An estimate for one rank and a worker's default limits.
    """
    heads = spec.n_heads + 2 * spec.n_kv_heads
    widths = 4 * spec.hidden_size + 2 * heads * spec.head_dim + 3 * spec.intermediate_size
    # Logits exist in the model's type, in float32, and once more for log probabilities.
    logits = _STEP_ROWS * spec.vocab_size * (element_bytes + 8)
    return _STEP_TOKENS * widths * element_bytes + logits + _LIBRARY_BYTES


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device; on CPU what system and container limit leave. None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    bounds = [bound for bound in (_system_bytes(), _container_bytes()) if bound is not None]
    return min(bounds, default=None)


def check_fit(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, pool_bytes: int, shard: Shard
) -> None:
    """Raises ConfigError with all numbers when weights and pool (graphs included) exceed the free memory.

    On a GPU steps need room too: an engine that loads but fails in its first long step would be worse.
    """
    weights = weight_bytes(spec, dtype.itemsize, shard)
    steps = step_bytes(spec, dtype.itemsize) if device.type == "cuda" else 0
    free, needed = available_bytes(device), weights + pool_bytes + steps
    if free is not None and needed > free:
        beside = f", steps about {steps}" if steps else ""
        raise ConfigError(
            f"weights in {str(dtype).removeprefix('torch.')} take {weights} bytes, the KV pool {pool_bytes}"
            f"{beside}, together {needed}, but {device.type} has {free} bytes free: use a smaller dtype, "
            "kv_memory_bytes, n_pages or max_model_len"
        )


def _system_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container_bytes() -> int | None:
    """Room under the cgroup's limit; the file cache in it can be taken back, so it counts as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        counters = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(counters.get("file", 0))
