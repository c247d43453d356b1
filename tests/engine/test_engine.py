"""Greedy output equals transformers, whatever the batching, chunking, prefix reuse and preemption.

By induction over tokens: if every drawn token is the argmax of transformers' logits given the tokens before
it, the answer is the one transformers generates. One forward pass of the oracle thus checks a whole answer.
"""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from twolane.core.prefix import page_hashes
from twolane.core.request import SamplingParams, TokenLogprob
from twolane.engine.engine import Engine
from twolane.engine.pages import OutOfPages
from twolane.engine.sequence import Row, Sequence

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, top_logprobs=3)


class Host:
    """A worker in small: random chunks and batches, prefix reuse, preemption; keeps log probabilities."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.n_cached = 0
        self.n_preempted = 0

    def run(self, sequences: list[Sequence], max_chunk: int, preempt: float) -> None:
        """Steps until every sequence has its max_tokens."""
        waiting = list(sequences)
        running: list[Sequence] = []
        page_tokens = self.engine.fingerprint.page_tokens
        while waiting or running:
            if waiting and (not running or self.random.random() < 0.6):
                running.append(self.admit(waiting.pop(0)))
            if len(running) > 1 and self.random.random() < preempt:
                waiting.append(self.preempt(running.pop(self.random.randrange(len(running)))))
            rows = []
            for sequence in list(running):
                left = len(sequence.tokens) - sequence.n_computed
                n_tokens = min(left, self.random.randint(1, max_chunk))
                pages = -(-(sequence.n_computed + n_tokens) // page_tokens) - len(sequence.page_ids)
                try:
                    sequence.page_ids += self.engine.pool.allocate(max(0, pages))
                except OutOfPages:
                    running.remove(sequence)
                    waiting.append(self.preempt(sequence))
                    continue
                rows.append(Row(sequence, n_tokens, n_tokens == left))
            self.random.shuffle(rows)
            for row, drawn in zip(rows, self.engine.step(rows), strict=True):
                assert (drawn is not None) == row.sample
                self.publish(row.sequence)
                if drawn is not None:
                    assert drawn.logprob is not None
                    self.logprobs.setdefault(row.sequence.request_id, []).append(drawn.logprob)
                    row.sequence.tokens.append(drawn.token_id)
                    if row.sequence.n_generated == row.sequence.sampling.max_tokens:
                        running.remove(row.sequence)
                        self.engine.pool.release(row.sequence.page_ids)
            self.engine.pool.check()

    def admit(self, sequence: Sequence) -> Sequence:
        """Takes over a cached prefix; at least one token is left to compute."""
        page_tokens = self.engine.fingerprint.page_tokens
        usable = (len(sequence.tokens) - 1) // page_tokens
        hashes = page_hashes(sequence.tokens, page_tokens)[:usable]
        sequence.page_ids = self.engine.pool.match(hashes)
        sequence.n_computed = len(sequence.page_ids) * page_tokens
        self.n_cached += sequence.n_computed
        return sequence

    def preempt(self, sequence: Sequence) -> Sequence:
        """Gives every page back; the tokens stay and are computed again."""
        self.engine.pool.release(sequence.page_ids)
        sequence.page_ids, sequence.n_computed = [], 0
        self.n_preempted += 1
        return sequence

    def publish(self, sequence: Sequence) -> None:
        """Names the full computed pages."""
        page_tokens = self.engine.fingerprint.page_tokens
        hashes = page_hashes(sequence.tokens[: sequence.n_computed], page_tokens)
        for page_id, name in zip(sequence.page_ids, hashes, strict=False):
            self.engine.pool.publish(page_id, name)


def assert_as_oracle(oracle: Any, sequence: Sequence, logprobs: list[TokenLogprob]) -> None:
    """Every answer token is the oracle's argmax, and log probabilities agree within 1e-4."""
    with torch.no_grad():
        logits = oracle(torch.tensor([list(sequence.tokens)])).logits[0]
    expected = logits.log_softmax(dim=-1)
    assert len(logprobs) == sequence.n_generated
    for place, reported in enumerate(logprobs, start=sequence.n_prompt):
        row = expected[place - 1]
        best = row.topk(4)
        # Where the oracle's own two best are a rounding error apart either is right.
        if best.values[0] - best.values[1] > 1e-4:
            assert sequence.tokens[place] == best.indices[0]
        assert reported.token_id == sequence.tokens[place]
        assert reported.logprob == pytest.approx(row[reported.token_id].item(), abs=1e-4)
        assert [value for _, value in reported.top] == pytest.approx(best.values[:3].tolist(), abs=1e-4)


def prompts(vocab_size: int = 199) -> st.SearchStrategy[list[list[int]]]:
    """Two to five prompts of 1 to 70 tokens, some of which begin alike."""

    @st.composite
    def build(draw: st.DrawFn) -> list[list[int]]:
        rng = random.Random(draw(st.integers(0, 2**32)))
        shared = [rng.randrange(vocab_size) for _ in range(40)]
        built = []
        for _ in range(draw(st.integers(2, 5))):
            begin = draw(st.sampled_from([0, 0, 7, 16, 40]))
            built.append(
                shared[:begin] + [rng.randrange(vocab_size) for _ in range(draw(st.integers(1, 30)))]
            )
        return built

    return build()


FAMILIES = [
    "llama",
    "llama3-rope-tied",
    "mistral-window",
    "mistral-linear",
    "qwen2-yarn",
    "qwen2-window",
    "qwen3",
]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=prompts(),
    max_chunk=st.sampled_from([1, 3, 8, 33, 200]),
    preempt=st.sampled_from([0.0, 0.15]),
    copy_bytes=st.sampled_from([0, 1 << 20]),
    seed=st.integers(0, 2**16),
)
def test_greedy_output_equals_transformers(
    models: Any,
    family: str,
    compiled: bool,
    batch: list[list[int]],
    max_chunk: int,
    preempt: float,
    copy_bytes: int,
    seed: int,
) -> None:
    """Any schedule gives the tokens and log probabilities of transformers."""
    engine = models.engine(family, copy_bytes=copy_bytes, compiled=compiled)
    host = Host(engine, seed)
    sequences = [
        Sequence(f"{index}", list(prompt), len(prompt), GREEDY) for index, prompt in enumerate(batch)
    ]
    host.run(sequences, max_chunk, preempt)
    assert engine.pool.held == 0
    for sequence in sequences:
        assert_as_oracle(models.oracle(family), sequence, host.logprobs[sequence.request_id])


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen3"])
def test_a_generated_answer_is_literally_that_of_generate(models: Any, family: str) -> None:
    """The same ids as transformers' own generate, as a check on the argument of this file."""
    prompt = [random.Random(5).randrange(3, 199) for _ in range(37)]
    sequence = Sequence("a", list(prompt), len(prompt), GREEDY)
    Host(models.engine(family), 1).run([sequence], 200, 0.0)
    ids = torch.tensor([prompt])
    expected = models.oracle(family).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=198
    )
    assert sequence.tokens == expected[0].tolist()


def test_prefixes_are_reused_and_a_small_pool_forces_preemption(models: Any) -> None:
    """The hard cases do occur: in a pool for two requests both happen, and the output is unharmed."""
    engine = models.engine("llama", n_pages=33)
    shared = [random.Random(9).randrange(199) for _ in range(40)]
    sequences = [Sequence(f"{i}", [*shared, i, i + 1], 42, GREEDY) for i in range(6)]
    host = Host(engine, 3)
    host.run(sequences, 16, 0.0)
    assert host.n_cached >= 40
    assert host.n_preempted >= 1
    for sequence in sequences:
        assert_as_oracle(models.oracle("llama"), sequence, host.logprobs[sequence.request_id])


def test_pages_of_another_engine_continue_an_answer(models: Any) -> None:
    """Pages copied into a second pool, at other places, serve decode there: what a transfer does."""
    prompt = [random.Random(11).randrange(199) for _ in range(30)]
    whole = Sequence("whole", list(prompt), 30, GREEDY)
    first, second = models.engine("qwen3"), models.engine("qwen3", n_pages=64)
    host = Host(first, 1)
    host.run([whole], 200, 0.0)
    moved = Sequence("moved", list(prompt), 30, GREEDY, page_ids=first.pool.allocate(11))
    (drawn,) = first.step([Row(moved, 30, True)])
    assert drawn is not None
    target = second.pool.allocate(11)
    second.kv[target] = first.kv[moved.page_ids]
    first.pool.release(moved.page_ids)
    moved.page_ids = target
    while True:
        assert drawn is not None
        moved.tokens.append(drawn.token_id)
        if moved.n_generated == 12:
            break
        (drawn,) = second.step([Row(moved, 1, True)])
    second.pool.release(target)
    assert moved.tokens == whole.tokens


@pytest.mark.parametrize(
    ("n_tokens", "sample", "n_pages", "complaint"),
    [
        (6, False, 4, "leaves its 5 tokens"),
        (0, False, 4, "leaves its 5 tokens"),
        (5, False, 1, "1 pages don't cover 5"),
        (4, True, 4, "can't draw after token 4 of 5"),
    ],
)
def test_a_row_that_contradicts_its_sequence_is_refused(
    models: Any, n_tokens: int, sample: bool, n_pages: int, complaint: str
) -> None:
    """The whole step is refused before anything is computed."""
    engine = models.engine("llama")
    sequence = Sequence("bad", [1, 2, 3, 4, 5], 5, GREEDY, page_ids=list(range(n_pages)))
    with pytest.raises(ValueError, match=f"request bad: .*{complaint}"):
        engine.step([Row(sequence, n_tokens, sample)])
    assert sequence.n_computed == 0


def test_tokens_outside_the_vocabulary_and_double_rows_are_refused(models: Any) -> None:
    """What would crash in the middle of a step, or write one page twice, is told before."""
    engine = models.engine("llama")
    foreign = Sequence("bad", [1, 199], 2, GREEDY, page_ids=[0])
    with pytest.raises(ValueError, match="token id is 199, the vocabulary has 199"):
        engine.step([Row(foreign, 2, True)])
    twice = Sequence("bad", [1, 2, 3], 3, GREEDY, page_ids=[0])
    with pytest.raises(ValueError, match="two rows"):
        engine.step([Row(twice, 1, False), Row(twice, 1, False)])
    assert (foreign.n_computed, twice.n_computed) == (0, 0)


def test_an_empty_step_does_nothing(models: Any) -> None:
    """No rows, no results."""
    assert models.engine("llama").step([]) == []
