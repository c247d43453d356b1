"""Draws the next token of every sampled row, with log probabilities where asked.

Greedy rows take the exact argmax. Other rows draw by inverting the cumulated distribution at one uniform
number that depends on (seed, number of generated tokens) alone, so a draw does not depend on the batch it
happens in.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from twolane.core.request import TokenLogprob
from twolane.engine.logits import change, needs_change
from twolane.engine.sequence import Sampled, Sequence

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Below this a temperature would overflow the scaled logits; the draw is as good as greedy there anyway.
COLDEST = 1e-5
# Nuclei larger than this many tokens are rare; those rows sort the whole vocabulary.
_CANDIDATES = 1024


def uniform(seed: int, index: int) -> float:
    """A number in (0, 1) from `seed` and `index` alone, by two rounds of the splitmix64 finaliser."""
    bits = _mix(_mix((seed & _MASK) + _GOLDEN & _MASK) ^ (index * _GOLDEN + 1 & _MASK))
    return ((bits >> 12) + 0.5) / (1 << 52)


def sample(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
    """Draws one token per row.

    Args:
        logits: [S, vocab_size], any float type; may be overwritten.
        sequences: the S sequences whose next token each row predicts.
    """
    logits = logits.float()
    for row, sequence in enumerate(sequences):
        if needs_change(sequence):
            change(logits[row], sequence)
    drawn = [row for row, sequence in enumerate(sequences) if not sequence.sampling.greedy]
    chosen = _argmax(logits) if len(drawn) < len(sequences) else [0] * len(sequences)
    plain = [row for row in drawn if not _truncates(sequences[row])]
    sorted_rows = [row for row in drawn if _truncates(sequences[row])]
    for rows, draw in ((plain, _draw_plain), (sorted_rows, _draw_sorted)):
        if rows:
            picked = draw(_scaled(logits, sequences, rows), [sequences[row] for row in rows])
            for row, token in zip(rows, picked, strict=True):
                chosen[row] = token
    return with_logprobs(logits, sequences, chosen)


def _argmax(logits: torch.Tensor) -> list[int]:
    """Index of each row's largest value, the first of equal ones."""
    if logits.device.type == "cpu":
        # Many times as fast as torch's.
        best: list[int] = logits.numpy().argmax(axis=-1).tolist()
        return best
    return logits.argmax(dim=-1).tolist()


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _truncates(sequence: Sequence) -> bool:
    return sequence.sampling.top_k > 0 or sequence.sampling.top_p < 1.0


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).to(like.device, non_blocking=True).unsqueeze(1)


def _scaled(logits: torch.Tensor, sequences: Rows[Sequence], rows: list[int]) -> torch.Tensor:
    temperatures = _column([max(sequences[row].sampling.temperature, COLDEST) for row in rows], logits)
    chosen = logits if len(rows) == logits.shape[0] else logits[rows]
    return chosen / temperatures


def _draw_plain(scaled: torch.Tensor, sequences: Rows[Sequence]) -> list[int]:
    """Rows without top-k and top-p: no sort; min-p compares with the best token."""
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_()
    return _invert(_apply_min_p(weights, sequences), sequences)[:, 0].tolist()


def _draw_sorted(scaled: torch.Tensor, sequences: Rows[Sequence]) -> list[int]:
    """Rows with top-k or top-p: the most likely candidates first, all only where a nucleus needs them."""
    vocab_size = scaled.shape[1]
    top_k = [sequence.sampling.top_k or vocab_size for sequence in sequences]
    wanted = max((k for k in top_k if k < vocab_size), default=1)
    n_candidates = min(vocab_size, max(_CANDIDATES, wanted))
    picked, short = _draw_candidates(scaled, sequences, n_candidates)
    if short:
        rest, _ = _draw_candidates(scaled[short], [sequences[row] for row in short], vocab_size)
        for row, token in zip(short, rest, strict=True):
            picked[row] = token
    return picked


def _draw_candidates(
    scaled: torch.Tensor, sequences: Rows[Sequence], n_candidates: int
) -> tuple[list[int], list[int]]:
    """Draws among the `n_candidates` most likely; also returns the rows whose nucleus reaches beyond them."""
    vocab_size = scaled.shape[1]
    values, ids = scaled.topk(n_candidates, dim=-1)
    top_k = _column([sequence.sampling.top_k or vocab_size for sequence in sequences], scaled)
    top_p = _column([sequence.sampling.top_p for sequence in sequences], scaled).double()
    weights = (values - values[:, :1]).exp_()
    weights.masked_fill_(torch.arange(n_candidates, device=scaled.device) >= top_k, 0.0)
    # Mass of the distribution that top-p cuts: all tokens, or those top-k left.
    everything = (scaled - values[:, :1]).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
    total = torch.where(
        top_k < vocab_size, weights.sum(dim=-1, keepdim=True, dtype=torch.float64), everything
    )
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    before = cumulated - weights
    beyond = (cumulated[:, -1:] < top_p * total) & (top_k > n_candidates)
    weights.masked_fill_((before >= top_p * total) & (before > 0), 0.0)
    place = _invert(_apply_min_p(weights, sequences), sequences)
    short = beyond[:, 0].nonzero()[:, 0].tolist() if n_candidates < vocab_size else []
    return ids.gather(1, place)[:, 0].tolist(), short


def _apply_min_p(weights: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Drops tokens below min_p times the best; weights are scaled so that the best has 1."""
    if any(sequence.sampling.min_p > 0.0 for sequence in sequences):
        least = _column([sequence.sampling.min_p for sequence in sequences], weights)
        weights.masked_fill_(weights < least, 0.0)
    return weights


def _invert(weights: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Index per row [R, 1] where the cumulated weights pass the row's uniform share."""
    shares = torch.tensor(
        [[uniform(sequence.sampling.seed, sequence.n_generated)] for sequence in sequences],
        dtype=torch.float64,
    ).to(weights.device)
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    place = torch.searchsorted(cumulated, shares * cumulated[:, -1:], right=True)
    return place.clamp_(max=weights.shape[1] - 1)


def with_logprobs(logits: torch.Tensor, sequences: Rows[Sequence], chosen: list[int]) -> list[Sampled]:
    """Adds log probabilities over the whole vocabulary for the rows that asked."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.top_logprobs is not None]
    if not rows:
        return [Sampled(token) for token in chosen]
    logprobs = logits[rows].log_softmax(dim=-1)
    ids = torch.tensor([[chosen[row]] for row in rows], device=logits.device)
    own = logprobs.gather(1, ids)[:, 0].tolist()
    most = min(max(sequences[row].sampling.top_logprobs or 0 for row in rows), logits.shape[1])
    best, best_ids = (part.tolist() for part in logprobs.topk(most, dim=-1))
    found: dict[int, TokenLogprob] = {}
    for place, row in enumerate(rows):
        n = sequences[row].sampling.top_logprobs or 0
        top = tuple(zip(best_ids[place][:n], best[place][:n], strict=True))
        found[row] = TokenLogprob(chosen[row], own[place], top)
    return [Sampled(token, found.get(row)) for row, token in enumerate(chosen)]
