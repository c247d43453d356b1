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


def weight_bytes(spec: ModelSpec, element_bytes: int, shard: Shard) -> int:
    """Bytes of one rank's matrices; vectors are left out."""
    heads = spec.n_heads + 2 * spec.n_kv_heads
    layer = spec.hidden_size * ((heads + spec.n_heads) * spec.head_dim + 3 * spec.intermediate_size)
    head = 0 if spec.tied else spec.vocab_size * spec.hidden_size
    split = (spec.n_layers * layer + head) // shard.size
    return (spec.vocab_size * spec.hidden_size + split) * element_bytes


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device; on CPU what system and container limit leave. None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    bounds = [bound for bound in (_system_bytes(), _container_bytes()) if bound is not None]
    return min(bounds, default=None)


def check_fit(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, pool_bytes: int, shard: Shard
) -> None:
    """Raises ConfigError with all numbers when weights and pool (graphs included) exceed the free memory."""
    weights = weight_bytes(spec, dtype.itemsize, shard)
    free = available_bytes(device)
    if free is not None and weights + pool_bytes > free:
        raise ConfigError(
            f"weights in {str(dtype).removeprefix('torch.')} take {weights} bytes, the KV pool {pool_bytes}, "
            f"together {weights + pool_bytes}, but {device.type} has {free} bytes free: use a smaller dtype, "
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
