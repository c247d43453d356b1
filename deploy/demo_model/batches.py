"""Turns documents into training batches: rows of like length, padded on the right.

One document is one row, so positions are those of serving and no document sees
another. Rows are grouped by length within a pool, so little is lost to padding.
Called by train.py and evaluate.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from document import Document
from tokenizer import segments
from transformers import PreTrainedTokenizerFast

# What a model must read but need not write still teaches English, at a tenth of the weight.
PROMPT_WEIGHT = 0.1
_POOL_DOCUMENTS = 1024
_MAX_TOKENS = 4096


@dataclass(frozen=True)
class Batch:
    """token_ids int64 [rows, length]; weights float32 [rows, length], the loss weight of each token."""

    token_ids: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return self.token_ids.numel()


Row = tuple[list[int], list[float]]


def encode(
    tokenizer: PreTrainedTokenizerFast, document: Document, prompt_weight: float = PROMPT_WEIGHT
) -> Row:
    """Token ids of a document and the loss weight of each."""
    token_ids: list[int] = []
    weights: list[float] = []
    for text, learned in segments(document):
        piece = tokenizer.encode(text, add_special_tokens=False)
        token_ids += piece
        weights += [1.0 if learned else prompt_weight] * len(piece)
    return token_ids[:_MAX_TOKENS], weights[:_MAX_TOKENS]


def _pad(rows: list[Row], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    return Batch(
        torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in rows]),
        torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in rows]),
    )


def group(rows: list[Row], pad_id: int, batch_tokens: int) -> list[Batch]:
    """Rows sorted by length and cut into batches of at most so many tokens (a longer row stands alone)."""
    batches: list[Batch] = []
    current: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if current and len(row[0]) * (len(current) + 1) > batch_tokens:
            batches.append(_pad(current, pad_id))
            current = []
        current.append(row)
    return [*batches, _pad(current, pad_id)] if current else batches


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Document], batch_tokens: int, seed: int
) -> Iterator[Batch]:
    """Batches without end, lengths in random order."""
    rng = random.Random(seed)
    while True:
        rows = [encode(tokenizer, document) for document in itertools.islice(stream, _POOL_DOCUMENTS)]
        pool = group(rows, tokenizer.pad_token_id, batch_tokens)
        rng.shuffle(pool)
        yield from pool
