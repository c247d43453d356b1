"""Measures a demo model: loss on documents that training never saw, and sample answers.

Called by train.py while it runs; as a script:
`python deploy/demo_model/evaluate.py services/src/twolane/demo_model`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from batches import encode, group
from corpus import documents
from document import Document
from tokenizer import segments
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VALIDATION_SEED = 987_654_321
PROMPTS = (
    "Hello!",
    "Who are you?",
    "Tell me a story about a fox.",
    "Write a story about a girl named Mia and a lost key.",
    "What is the capital of France?",
    "What is 7 + 8?",
    "Write a JSON object for a person with the keys name, age and city.",
    "Sort these words: river, apple, moon, bell",
    "Repeat after me: the small grey zebra 4711 sings",
    "What is a KV cache?",
    "Name four animals.",
    "Count from 1 to 10.",
    "Write in upper case: good morning",
    "What is the meaning of life?",
    "Nina the otter walked to the harbour on Friday with a purple umbrella.\n\nWhat colour was the umbrella?",
)


@dataclass(frozen=True)
class Score:
    """Loss over what the model must write: nats per token, bits per character."""

    nats_per_token: float
    bits_per_char: float


@torch.no_grad()
def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> Score:
    """The loss on so many validation documents, prompts not counted."""
    sample: list[Document] = list(itertools.islice(documents(VALIDATION_SEED), count))
    chars = sum(len(text) for document in sample for text, learned in segments(document) if learned)
    nats = tokens = 0.0
    for batch in group(
        [encode(tokenizer, document, 0.0) for document in sample], tokenizer.pad_token_id, 4096
    ):
        logits = model(input_ids=batch.token_ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2).float(), batch.token_ids[:, 1:], reduction="none"
        )
        nats += float((losses * batch.weights[:, 1:]).sum())
        tokens += float(batch.weights[:, 1:].sum())
    return Score(nats / tokens, nats / math.log(2) / chars)


@torch.no_grad()
def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    temperature: float = 0.0,
    max_new_tokens: int = 220,
) -> str:
    """The model's reply to one user message, with its stop token; greedy at temperature 0."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    token_ids = torch.tensor([tokenizer.encode(str(text), add_special_tokens=False)])
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": 0.95}
        if temperature
        else {"do_sample": False}
    )
    # transformers types generate() for a protocol that its own models miss.
    output = cast(Any, model).generate(
        token_ids, attention_mask=torch.ones_like(token_ids), max_new_tokens=max_new_tokens, **sampling
    )
    return str(tokenizer.decode(output[0, token_ids.shape[1] :].tolist()))


def main() -> None:
    """Print the score and one greedy and one sampled answer per prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1000, help="validation documents (default 1000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(options.folder).train(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.folder)
    print(score(model, tokenizer, options.documents))
    for prompt in PROMPTS:
        print(f"\n> {prompt}")
        for temperature in (0.0, 0.8):
            print(f"[{temperature}] {answer(model, tokenizer, prompt, temperature)}")


if __name__ == "__main__":
    main()
