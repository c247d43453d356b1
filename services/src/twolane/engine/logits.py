"""Changes a request asks for in its logits before any token is drawn: penalties, bias, banned stop tokens.

Called by the sampler for the rows that need it; log probabilities are taken after these changes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from twolane.core.request import SamplingParams
from twolane.engine.sequence import Sequence, TokenCounts


def needs_change(sequence: Sequence) -> bool:
    """Whether `change` would touch this sequence's logits."""
    sampling = sequence.sampling
    return _bans_stops(sequence) or bool(sampling.logit_bias) or _penalises(sampling)


def change(row: torch.Tensor, sequence: Sequence) -> None:
    """Applies repetition, frequency and presence penalties, then bias, then the ban on stop tokens, in place.

    Args:
        row: float32 logits [vocab_size] of the token that follows `sequence`.
        sequence: whose tokens and parameters count.
    """
    sampling = sequence.sampling
    vocab_size = row.shape[0]
    if _penalises(sampling):
        counts = _count(sequence)
        if sampling.repetition_penalty != 1.0:
            _penalise_repetition(row, counts, sampling.repetition_penalty)
        if counts.generated and (sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0):
            ids = _ids(counts.generated, row.device)
            times = torch.tensor(list(counts.generated.values()), dtype=row.dtype, device=row.device)
            row[ids] -= times * sampling.frequency_penalty + sampling.presence_penalty
    bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < vocab_size}
    if bias:
        row[_ids(bias, row.device)] += torch.tensor(list(bias.values()), dtype=row.dtype, device=row.device)
    if _bans_stops(sequence):
        banned = [token for token in sampling.stop_token_ids if 0 <= token < vocab_size]
        row[_ids(banned, row.device)] = float("-inf")


def _penalises(sampling: SamplingParams) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def _bans_stops(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return (
        not sampling.ignore_eos
        and sequence.n_generated < sampling.min_tokens
        and bool(sampling.stop_token_ids)
    )


def _count(sequence: Sequence) -> TokenCounts:
    """Brings the sequence's counts up to its last token."""
    counts = sequence.counts
    if counts is None:
        counts = sequence.counts = TokenCounts(sequence.n_prompt, set(sequence.tokens[: sequence.n_prompt]))
    for token in sequence.tokens[counts.n_counted :]:
        counts.generated[token] = counts.generated.get(token, 0) + 1
    counts.n_counted = len(sequence.tokens)
    return counts


def _penalise_repetition(row: torch.Tensor, counts: TokenCounts, penalty: float) -> None:
    ids = _ids(counts.prompt.union(counts.generated), row.device)
    values = row[ids]
    row[ids] = torch.where(values > 0, values / penalty, values * penalty)


def _ids(tokens: Iterable[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=device)
