"""The shape of the demo model, its generation settings, and how both are written to the model folder.

Called by train.py. A change of shape needs a new training; others name the folder, never the shape.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizer import END_TURN
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MAX_POSITION = 8192


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of 3.5 million parameters: 4 layers of 256, 4 query and 2 key-value heads of 64."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITION,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.dtype = torch.float32
    return LlamaForCausalLM(config)


def _stop_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that end an answer: end of text and end of turn."""
    return [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_TURN)]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config, weights (float32 safetensors), tokenizer, template and generation settings."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
