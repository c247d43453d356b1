"""The device sampler agrees with the torch sampler wherever chance plays no part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twolane.core.request import SamplingParams
from twolane.engine.kernel_sampler import sample_on_device
from twolane.engine.sampler import sample
from twolane.engine.sequence import Sequence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB = 150


def sequence(**sampling: Any) -> Sequence:
    """Two prompt tokens, three of the answer."""
    return Sequence("r", [1, 2, 5, 5, 9], 2, SamplingParams(max_tokens=64, **sampling))


def logits(n_rows: int) -> torch.Tensor:
    """Random rows."""
    return torch.randn(n_rows, VOCAB, generator=torch.Generator().manual_seed(2)) * 3


def test_certain_draws_equal_the_torch_sampler() -> None:
    """Greedy, top-k of one, penalties, bias, bans; log probabilities within rounding."""
    rows = [
        sequence(temperature=0.0, top_logprobs=3),
        sequence(top_k=1, seed=2**63 + 1, top_logprobs=0),
        sequence(temperature=0.0, frequency_penalty=2.0, repetition_penalty=1.4, top_logprobs=2),
        sequence(top_p=1e-6, logit_bias={77: 50.0}, seed=-1),
        sequence(temperature=0.0, min_tokens=9, stop_token_ids=frozenset(range(100))),
    ]
    values = logits(len(rows))
    expected = sample(values.clone(), rows)
    drawn = sample_on_device(values.to(DEVICE), rows)
    assert [result.token_id for result in drawn] == [result.token_id for result in expected]
    for mine, theirs in zip(drawn, expected, strict=True):
        assert (mine.logprob is None) == (theirs.logprob is None)
        if mine.logprob is not None and theirs.logprob is not None:
            assert mine.logprob.logprob == pytest.approx(theirs.logprob.logprob, abs=1e-4)
            assert [token for token, _ in mine.logprob.top] == [token for token, _ in theirs.logprob.top]


def test_a_draw_does_not_depend_on_its_batch() -> None:
    """Each row alone gives what it gave among others, and another seed gives something else somewhere."""
    rows = [sequence(seed=seed, top_k=40, top_p=0.95) for seed in range(5)]
    values = logits(1).repeat(5, 1).to(DEVICE)
    together = [result.token_id for result in sample_on_device(values.clone(), rows)]
    alone = [sample_on_device(values[:1].clone(), [row])[0].token_id for row in rows]
    assert alone == together
    assert len(set(together)) > 1


def test_a_temperature_close_to_zero_draws_the_best_token() -> None:
    """Its inverse is no number of float32: the row would be full of NaN."""
    rows = [sequence(temperature=1e-42, seed=1), sequence(temperature=1e-30, top_p=0.9, seed=2)]
    values = logits(2)
    drawn = sample_on_device(values.to(DEVICE), rows)
    assert [result.token_id for result in drawn] == values.argmax(dim=-1).tolist()
