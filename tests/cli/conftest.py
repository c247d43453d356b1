"""A model folder for the launcher's tests: made in a second, random weights, real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.router.tiny_model import write_tiny_model

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers that says nothing sensible."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocab, length = ours["vocab_size"], ours["max_position_embeddings"]
    torch.manual_seed(0)
    eos = ours["eos_token_id"]
    config = LlamaConfig(vocab_size=vocab, max_position_embeddings=length, eos_token_id=eos, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
