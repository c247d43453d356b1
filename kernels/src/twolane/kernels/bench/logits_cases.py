"""Cases on rows of logits: the rules, and sampling with and without filters. The limit is one read of the
logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from twolane.kernels.bench.case import Case, CaseBuilder, Sizes
from twolane.kernels.logit_rules import Penalties, apply_logit_rules
from twolane.kernels.logit_rules_reference import logit_rules_reference
from twolane.kernels.sampling import SamplingRows, sample
from twolane.kernels.sampling_reference import sample_reference


def logits_cases(sizes: Sizes, device: torch.device) -> Iterator[CaseBuilder]:
    """Greedy, plain noise, top-k, top-p and both, on logits as peaked as a language model's; then the
    rules."""
    filters: tuple[tuple[str, float, int, float], ...] = (
        ("greedy", 0.0, 0, 1.0),
        ("no filter", 1.0, 0, 1.0),
        ("top-k 50", 1.0, 50, 1.0),
        ("top-p 0.9", 1.0, 0, 0.9),
        ("top-k 50, top-p 0.9", 0.8, 50, 0.9),
    )
    for entry in filters:
        yield "sampling", partial(_sampling, sizes, entry, device)
    yield "logit_rules", partial(_rules, sizes, device)


def _sampling(sizes: Sizes, entry: tuple[str, float, int, float], device: torch.device) -> Case:
    label, temperature, top_k, top_p = entry
    n = sizes.batch
    logits = torch.randn(n, sizes.vocab, device=device) * 2.5
    rows = SamplingRows(
        temperature=torch.full((n,), temperature, device=device),
        top_k=torch.full((n,), top_k, dtype=torch.int32, device=device),
        top_p=torch.full((n,), top_p, device=device),
        min_p=torch.zeros(n, device=device),
        seed=torch.arange(n, dtype=torch.int64, device=device),
        position=torch.zeros(n, dtype=torch.int64, device=device),
    )

    def expected() -> torch.Tensor:
        return sample_reference(logits, rows)[1]

    peer: Callable[[], object] = lambda: logits.argmax(dim=-1)  # noqa: E731
    if temperature > 0.0:
        peer = lambda: _sorting_sampler(logits, temperature, top_k, top_p)  # noqa: E731
    moved = logits.numel() * logits.element_size()
    name = f"{label}, {n} x {sizes.vocab}"
    return Case("sampling", name, lambda: sample(logits, rows)[1], expected, 1e-3, moved, 0, {"torch": peer})


def _sorting_sampler(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """What an engine without a sampling kernel does."""
    scaled = logits / temperature
    if top_k > 0:
        least = scaled.topk(min(top_k, logits.shape[1])).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probabilities = scaled.softmax(dim=-1)
    if top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered > top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    noise = torch.empty_like(probabilities).exponential_()
    return (probabilities / noise).argmax(dim=-1)


def _rules(sizes: Sizes, device: torch.device) -> Case:
    n, vocab = sizes.batch, sizes.vocab
    logits = torch.randn(n, vocab, device=device)
    given = logits.clone()
    penalties = Penalties(
        slot=torch.arange(n, device=device),
        repetition=torch.full((n,), 1.1, device=device),
        presence=torch.full((n,), 0.1, device=device),
        frequency=torch.full((n,), 0.1, device=device),
        in_prompt=torch.randint(0, 2, (n, vocab), dtype=torch.uint8, device=device),
        output_counts=torch.randint(0, 2, (n, vocab), dtype=torch.int32, device=device),
    )
    words = (vocab + 31) // 32
    allowed = torch.randint(-(2**31), 2**31, (n, words), device=device).to(torch.int32)

    def run() -> torch.Tensor:
        # In place: the first run starts from what was given, later ones only have to take as long.
        apply_logit_rules(logits, penalties=penalties, allowed=allowed)
        return logits

    def expected() -> torch.Tensor:
        return logit_rules_reference(given, penalties=penalties, allowed=allowed)

    moved = n * vocab * (4 + 4 + 4 + 1) + allowed.numel() * 4
    return Case("logit_rules", f"{n} x {vocab}", run, expected, 1e-5, moved)
