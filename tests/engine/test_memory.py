"""What loading says when memory is short, and how it finds out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.kernels.fake_device import fake_device
from twolane.core.errors import ConfigError
from twolane.engine import memory
from twolane.engine.config import EngineConfig, GraphSettings
from twolane.engine.engine import Engine
from twolane.engine.parallel import Shard
from twolane.engine.spec import read_spec

CPU = torch.device("cpu")


def test_a_model_that_does_not_fit_is_refused_with_numbers(
    new_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights are read; a smaller dtype is the first advice and helps."""
    folder = new_folder()
    weights = memory.weight_bytes(read_spec(folder), 4, Shard())
    pool = 16 * 3 * 2 * 2 * 16 * 16 * 4
    monkeypatch.setattr(memory, "available_bytes", lambda device: weights + pool - 1)
    config: dict[str, Any] = {"device": "cpu", "n_pages": 16, "max_model_len": 64}
    said = f"float32 take {weights} bytes, the KV pool {pool}, .* has {weights + pool - 1} bytes free.*dtype"
    with pytest.raises(ConfigError, match=said):
        Engine.load(EngineConfig(folder, **config))
    assert Engine.load(EngineConfig(folder, dtype="bfloat16", **config)).kv.dtype == torch.bfloat16


def test_on_a_gpu_steps_need_room_beside_weights_and_pool(new_folder: Callable[..., Path]) -> None:
    """A pool that takes all the rest would load, and fail in the first long prompt."""
    folder = new_folder()
    spec = read_spec(folder)
    needed = memory.weight_bytes(spec, 2, Shard()) + (64 << 20) + memory.step_bytes(spec, 2)
    config = EngineConfig(
        folder,
        device="cuda",
        dtype="bfloat16",
        kv_memory_bytes=64 << 20,
        graphs=GraphSettings(memory_bytes=0),
        random_weights=True,
    )
    page_bytes = spec.page_bytes(16, 2)
    with fake_device(needed - page_bytes), pytest.raises(ConfigError, match=r"steps about \d+, together"):
        Engine.load(config)
    with fake_device(needed):
        assert Engine.load(config).kv.is_cuda


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_weights_are_counted_as_they_are(new_folder: Callable[..., Path], family: str) -> None:
    """Within the vectors, which are left out; ranks share what is split."""
    folder = new_folder(family)
    spec = read_spec(folder)
    tensors = load_file(folder / "model.safetensors")
    matrices = sum(tensor.numel() for tensor in tensors.values() if tensor.dim() == 2)
    assert memory.weight_bytes(spec, 4, Shard()) == 4 * matrices
    assert memory.weight_bytes(spec, 4, Shard(0, 2)) < memory.weight_bytes(spec, 4, Shard())


def test_the_tighter_of_system_and_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's file cache is free memory; without any source nothing is known."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes(CPU) is None
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert memory.available_bytes(CPU) == 5000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nfile 400000\n")
    assert memory.available_bytes(CPU) == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(CPU) == 5000 * 1024
