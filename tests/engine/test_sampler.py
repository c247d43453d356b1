"""Draws: exact where greedy, distributed as asked elsewhere, and a function of (seed, index) alone."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from twolane.core.request import SamplingParams
from twolane.engine.sampler import sample, uniform
from twolane.engine.sequence import Sequence

VOCAB = 24


def sequence(n_generated: int = 0, tokens: list[int] | None = None, **sampling: Any) -> Sequence:
    """A sequence with a prompt of two tokens and an answer of `n_generated` (or the given tokens)."""
    answer = tokens if tokens is not None else [3] * n_generated
    return Sequence("r", [1, 2, *answer], 2, SamplingParams(max_tokens=64, **sampling))


def draws(logits: torch.Tensor, n: int, seed: int = 0, **sampling: Any) -> list[int]:
    """`n` draws from one distribution: the first 500 positions of as many answers as it takes."""
    drawn: list[int] = []
    for answer in range(-(-n // 500)):
        rows = [sequence(index, seed=seed + answer, **sampling) for index in range(min(500, n))]
        drawn += [result.token_id for result in sample(logits.repeat(len(rows), 1), rows)]
    return drawn


def assert_distributed(drawn: list[int], expected: torch.Tensor) -> None:
    """Chi-square with a fixed seed; a right sampler passes unless one in 10^5 seeds was picked."""
    observed = np.bincount(drawn, minlength=len(expected))
    probabilities = expected.double().numpy()
    assert observed[probabilities == 0].sum() == 0
    kept = probabilities > 0
    counts = probabilities[kept] * len(drawn)
    statistic = float((((observed[kept] - counts) ** 2) / counts).sum())
    freedom = int(kept.sum()) - 1
    # Wilson-Hilferty: the cube root of a chi-square over its freedom is nearly normal.
    spread = 2 / (9 * freedom)
    assert ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 4.27


def some_logits(seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    """Random logits of a moderately peaked distribution."""
    return torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * 1.5


def truncated(logits: torch.Tensor, **sampling: Any) -> torch.Tensor:
    """Probabilities by definition: temperature, then top-k, then top-p of what is left, then min-p."""
    scaled = (logits[0].double() / sampling.get("temperature", 1.0)).softmax(-1)
    order = scaled.argsort(descending=True)
    kept = torch.ones(len(order), dtype=torch.bool)
    if sampling.get("top_k"):
        kept[sampling["top_k"] :] = False
    mass = scaled[order] * kept
    mass = mass / mass.sum()
    kept &= (mass.cumsum(0) - mass) < sampling.get("top_p", 1.0)
    kept &= mass >= sampling.get("min_p", 0.0) * mass[0]
    result = torch.zeros_like(scaled)
    result[order] = scaled[order] * kept
    return result / result.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "seed": 2**63 + 5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.85, "min_p": 0.05, "temperature": 1.3, "seed": -4},
        {"top_k": 1000, "top_p": 0.999},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_asked_for(sampling: dict[str, Any]) -> None:
    """20,000 positions of 40 answers against the definition."""
    logits = some_logits(3)
    assert_distributed(draws(logits, 20_000, **sampling), truncated(logits, **sampling))


def test_seeds_are_independent_streams() -> None:
    """The first token over many seeds is distributed as many tokens of one seed are."""
    logits = some_logits(4)
    rows = [sequence(temperature=1.0, seed=seed) for seed in range(20_000)]
    drawn = [result.token_id for result in sample(logits.repeat(len(rows), 1), rows)]
    assert_distributed(drawn, logits[0].softmax(-1))


def test_a_nucleus_wider_than_the_candidates_is_drawn_from_whole() -> None:
    """A flat distribution over 5,000 tokens with top_p 0.9 keeps 4,500 of them, not the first 1,024."""
    logits = torch.linspace(0.001, 0.0, 5000)[None]
    drawn = draws(logits, 3000, top_p=0.9)
    assert max(drawn) > 4300
    assert max(drawn) < 4510
    assert len(set(drawn)) > 2000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(-(2**63), 2**64),
    index=st.integers(0, 50),
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.7, 1.0]),
                "top_k": st.sampled_from([0, 3, 20]),
                "top_p": st.sampled_from([1.0, 0.8]),
                "min_p": st.sampled_from([0.0, 0.1]),
                "frequency_penalty": st.sampled_from([0.0, 1.5]),
            }
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_a_draw_does_not_depend_on_its_batch(seed: int, index: int, rows: list[dict[str, Any]]) -> None:
    """Each row drawn alone gives what it gave among the others."""
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(index))
    together = sample(logits.clone(), [sequence(index, seed=seed, **row) for row in rows])
    for place, row in enumerate(rows):
        (alone,) = sample(logits[place : place + 1].clone(), [sequence(index, seed=seed, **row)])
        assert alone.token_id == together[place].token_id


def test_the_uniform_numbers_look_uniform() -> None:
    """Mean, variance and neighbour correlation over indices and over seeds."""
    for stream in ([uniform(7, i) for i in range(20_000)], [uniform(i, 7) for i in range(20_000)]):
        values = np.array(stream)
        assert ((values > 0) & (values < 1)).all()
        assert abs(values.mean() - 0.5) < 0.01
        assert abs(values.var() - 1 / 12) < 0.003
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


def test_greedy_takes_the_first_best() -> None:
    """Argmax, whatever else is in the batch."""
    logits = torch.cat([some_logits(seed) for seed in range(4)])
    rows = [
        sequence(temperature=0.0),
        sequence(temperature=1.0),
        sequence(temperature=0.0, top_p=0.1),
        sequence(),
    ]
    drawn = sample(logits.clone(), rows)
    assert [drawn[0].token_id, drawn[2].token_id] == [int(logits[0].argmax()), int(logits[2].argmax())]


@pytest.mark.parametrize("temperature", [1e-30, 1e-9, 1e-3])
def test_a_freezing_temperature_is_greedy(temperature: float) -> None:
    """No overflow near zero."""
    logits = some_logits(1) * 50
    assert set(draws(logits, 50, temperature=temperature)) == {int(logits.argmax())}


def adjusted(row: SamplingParams, tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Log probabilities after penalties and bias, by their definitions, one token at a time."""
    values = logits[0].double().tolist()
    for token in range(VOCAB):
        if token in (1, 2, *tokens) and row.repetition_penalty != 1.0:
            penalty = row.repetition_penalty
            values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        times = tokens.count(token)
        values[token] -= row.frequency_penalty * times + (row.presence_penalty if times else 0.0)
        values[token] += row.logit_bias.get(token, 0.0)
    return torch.tensor(values).log_softmax(-1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, VOCAB - 1), max_size=12),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    frequency=st.sampled_from([0.0, 0.5, -0.5]),
    presence=st.sampled_from([0.0, 1.0]),
    bias=st.dictionaries(st.integers(0, VOCAB + 3), st.floats(-5, 5), max_size=3),
    seed=st.integers(0, 1000),
)
def test_penalties_and_bias_follow_their_definitions(
    tokens: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float], seed: int
) -> None:
    """Log probabilities of all tokens after penalties; a bias beyond the vocabulary is ignored."""
    row = sequence(
        tokens=tokens,
        temperature=0.0,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
        top_logprobs=VOCAB,
    )
    logits = some_logits(seed)
    expected = adjusted(row.sampling, tokens, logits)
    (drawn,) = sample(logits.clone(), [row])
    assert drawn.logprob is not None
    assert dict(drawn.logprob.top) == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-4)
    assert drawn.logprob.logprob == pytest.approx(expected.max().item(), abs=1e-4)


def test_counts_grow_with_the_answer() -> None:
    """Penalties of a second step include the token drawn in the first."""
    row = sequence(temperature=0.0, presence_penalty=100.0)
    logits = some_logits(2)
    seen = []
    for _ in range(VOCAB):
        (drawn,) = sample(logits.clone(), [row])
        row.tokens.append(drawn.token_id)
        seen.append(drawn.token_id)
    assert sorted(seen) == list(range(VOCAB))


def test_stop_tokens_wait_for_min_tokens() -> None:
    """Banned before min_tokens, free after it, and ordinary with ignore_eos."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 9.0
    common: dict[str, Any] = {"temperature": 0.0, "min_tokens": 3, "stop_token_ids": frozenset({5, 999})}
    assert sample(logits.clone(), [sequence(2, **common)])[0].token_id != 5
    assert sample(logits.clone(), [sequence(3, **common)])[0].token_id == 5
    assert sample(logits.clone(), [sequence(2, ignore_eos=True, **common)])[0].token_id == 5


@pytest.mark.parametrize("n_top", [0, 1, 4])
def test_alternatives_come_best_first_and_ignore_temperature(n_top: int) -> None:
    """Log probabilities are of the whole vocabulary before temperature and truncation."""
    logits = some_logits(6)
    rows = [sequence(temperature=0.3, top_k=1, top_logprobs=n_top), sequence(temperature=0.3)]
    first, second = sample(logits.repeat(2, 1), rows)
    expected = logits[0].log_softmax(-1).topk(n_top)
    assert second.logprob is None
    assert first.logprob is not None
    assert [token for token, _ in first.logprob.top] == expected.indices.tolist()
    assert [value for _, value in first.logprob.top] == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert first.logprob.logprob == pytest.approx(logits[0].log_softmax(-1).max().item(), abs=1e-6)
