"""Tiny random models of every family, saved by transformers, and engines that load them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine

torch.set_num_threads(1)

# Kernels run compiled or interpreted; the default run starts a process for the latter (test_kernel_path.py).
collect_ignore: list[str] = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore.append("kernel_path")

TINY: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Every family, and each switch that changes the arithmetic at least once.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3-rope-tied": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral-window": ("Mistral", {"sliding_window": 21}),
    "mistral-linear": (
        "Mistral",
        {
            "sliding_window": None,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "qwen2-yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 18, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
}


def save_model(folder: Path, family: str, **changes: Any) -> Any:
    """Saves a random model of `family` with all its weights, biases included, and returns it."""
    name, switches = FAMILIES[family]
    shape = TINY | switches | changes
    if name == "Qwen2":
        # Qwen2 has no such field: heads of 16 need a wider stream.
        shape.pop("head_dim", None)
        shape["hidden_size"] = 64
    torch.manual_seed(sum(family.encode()))
    config = getattr(transformers, f"{name}Config")(**shape)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key or "bias" in key:
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": family}))
    return model


class Models:
    """Folders and transformers models of all families, made on first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[str, Any] = {}
        self._engines: dict[tuple[str, int, int, bool], Engine] = {}

    def oracle(self, family: str) -> Any:
        """The transformers model."""
        if family not in self._models:
            self._models[family] = save_model(self.folder(family), family)
        return self._models[family]

    def folder(self, family: str) -> Path:
        """Where the family's model is saved once `oracle` or `engine` was called."""
        return self.root / family

    def engine(
        self, family: str, n_pages: int = 128, copy_bytes: int = 1 << 20, compiled: bool = True
    ) -> Engine:
        """One shared engine per family, pool, dense copy and path; tests give back every page they take."""
        self.oracle(family)
        key = (family, n_pages, copy_bytes, compiled)
        if key not in self._engines:
            config = EngineConfig(
                self.folder(family),
                device="cpu",
                n_pages=n_pages,
                page_tokens=4,
                max_model_len=128,
                decode_copy_bytes=copy_bytes,
                compiled=compiled,
            )
            self._engines[key] = Engine.load(config)
        return self._engines[key]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """All families, shared by the whole run."""
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a fresh model folder that a test may spoil."""

    def make(family: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        save_model(folder, family, **changes)
        return folder

    return make
