"""What one benchmark case is, and the sizes cases are built at.

Used by the case modules and the runner. Cases are built lazily, one at a time, so that their tensors don't
add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    run: the kernel; expected: what it must give, within ``tolerance`` (absolute and relative); bytes_moved
    and flops: the least that any implementation must move and compute; peers: other ways to do the same, by
    name.
    """

    op: str
    label: str
    run: Callable[[], torch.Tensor]
    expected: Callable[[], torch.Tensor]
    tolerance: float
    bytes_moved: int
    flops: int = 0
    peers: Mapping[str, Callable[[], object]] = field(default_factory=dict)


# The operation's name, and what builds its case: unselected operations allocate nothing.
CaseBuilder = tuple[str, Callable[[], Case]]


@dataclass(frozen=True)
class Sizes:
    """Model and batch sizes of all cases."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    n_layers: int
    page_tokens: int
    wide_page_tokens: int
    tokens: int
    batch: int
    transfer_pages: int
    decode_batches: tuple[tuple[str, tuple[int, ...]], ...]
    prefill_batches: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


# Qwen3-8B in bf16; Llama-3-8B differs in vocabulary and MLP width only.
FULL = Sizes(
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden=4096,
    intermediate=12288,
    vocab=151936,
    n_layers=36,
    page_tokens=16,
    wide_page_tokens=64,
    tokens=8192,
    batch=64,
    transfer_pages=256,
    decode_batches=(
        ("64 x 4096", (4096,) * 64),
        ("16 x 8192", (8192,) * 16),
        ("1 x 32768", (32768,)),
        ("63 x 1024 + 32768", (1024,) * 63 + (32768,)),
        ("256 x 1024", (1024,) * 256),
    ),
    # (new tokens, whole context) per sequence.
    prefill_batches=(
        ("8192 new", ((8192, 8192),)),
        ("16384 new", ((16384, 16384),)),
        ("2048 new on 8192 cached", ((2048, 10240),)),
        ("32 x 64 new", ((64, 64),) * 32),
        ("16 x 60 new on 4096 cached", ((60, 4156),) * 16),
    ),
)

# Small enough for the interpreter, odd enough to be honest.
TINY = Sizes(
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden=48,
    intermediate=40,
    vocab=100,
    n_layers=2,
    page_tokens=4,
    wide_page_tokens=64,
    tokens=3,
    batch=2,
    transfer_pages=2,
    decode_batches=(("2 x 9", (9, 9)), ("3 + 20", (3, 20))),
    prefill_batches=(("7 new", ((7, 7),)), ("3 new on 6 cached", ((3, 9), (2, 8)))),
)
