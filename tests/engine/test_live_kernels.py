"""What engines of real shapes ask the compiler for, compiled for Hopper without a device.

The compile gate builds kernels for arguments that somebody wrote down; here they are those of real launches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from triton.compiler import ASTSource

from tests.kernels.fake_device import SHARED_LIMIT_BYTES, FakeDevice, fake_device
from twolane.engine.config import EngineConfig, GraphSettings
from twolane.engine.engine import Engine
from twolane.kernels import tuning
from twolane.kernels.compile_gate import compile_source

# Heads, KV heads, head dimension and widths of published models; two layers stand for all.
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {"architectures": ["LlamaForCausalLM"], "head_dim": 64, "hidden_size": 2048}
    | {"intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "Mistral-7B": {"architectures": ["MistralForCausalLM"], "head_dim": 128, "hidden_size": 4096}
    | {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}
    | {"sliding_window": 4096},
    "Qwen2.5-7B": {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "Qwen3-32B": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "hidden_size": 5120}
    | {"intermediate_size": 25600, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151936},
}


def launched(folder: Path, shape: dict[str, Any]) -> FakeDevice:
    """What loading and warming up launches."""
    common = {"num_hidden_layers": 2, "max_position_embeddings": 8192, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(common | shape))
    config = EngineConfig(
        folder,
        device="cuda",
        kv_memory_bytes=1 << 30,
        random_weights=True,
        graphs=GraphSettings(max_rows=32, max_short_tokens=128),
    )
    with fake_device() as device:
        Engine.load(config)
    return device


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_of_a_real_shape_fit_a_hopper_and_spill_nothing(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registers, stack and shared memory of every form, candidates of decode attention included."""
    monkeypatch.setenv(tuning.CACHE_FOLDER_VARIABLE, str(tmp_path / "choices"))
    monkeypatch.setattr(tuning, "_caches", {})
    faults = []
    for form in launched(tmp_path, shape).forms.values():
        source = ASTSource(form["function"], form["signature"], form["constants"], form["configs"][0])
        options = {name: form[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        compiled = compile_source(source, options, 90)
        if compiled.spilled_bytes or compiled.shared_bytes > SHARED_LIMIT_BYTES or compiled.registers > 255:
            faults.append((form["function"].fn.__name__, options, compiled))
    assert not faults
