"""The queue hands the policy an honest view, finds pages, and never loses or doubles a prompt."""

from __future__ import annotations

from array import array

import pytest

from twolane.core.request import Lane, SamplingParams
from twolane.engine.pages import PagePool
from twolane.engine.sequence import Sequence
from twolane.policies.cost import PrefillCost
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.registry import by_name
from twolane.policies.settings import PrefillSettings
from twolane.prefill.queue import PrefillBatch, PrefillQueue, Prompt

PAGE_TOKENS = 4
SETTINGS = PrefillSettings(short_max_uncached_tokens=8, long_chunk_tokens=8, max_batch_tokens=64)


def prompt(name: str, tokens: list[int], arrival_s: float = 0.0, salt: str = "") -> Prompt:
    """A prompt of given tokens."""
    sequence = Sequence(name, array("I", tokens), len(tokens), SamplingParams(max_tokens=4), cache_salt=salt)
    return Prompt(sequence, arrival_s)


def queue(n_pages: int = 64, policy: str = "fcfs") -> tuple[PrefillQueue, PagePool]:
    """A queue over a fresh pool."""
    pool = PagePool(n_pages, PAGE_TOKENS)
    return PrefillQueue(by_name(policy, SETTINGS), pool, SETTINGS), pool


def compute(waiting: PrefillQueue, batch: PrefillBatch) -> list[str]:
    """Does what an engine step does to the sequences; returns the prompts that are complete."""
    for entry, tokens in batch.chunks:
        entry.sequence.n_computed += tokens
    return [entry.sequence.request_id for entry in waiting.settle(batch, 0.01)]


def test_lane_follows_the_uncached_length() -> None:
    """A long conversation whose pages are cached is short work."""
    waiting, pool = queue()
    first = prompt("first", list(range(40)))
    waiting.add(first)
    assert first.lane is Lane.LONG
    while len(waiting):
        compute(waiting, waiting.next_batch(0.0))
    pool.release(first.sequence.page_ids)
    turn = prompt("turn", [*range(40), 99])
    waiting.add(turn)
    assert turn.lane is Lane.SHORT
    assert turn.cached_tokens == 40
    stranger = prompt("stranger", [*range(40), 99], salt="other tenant")
    waiting.add(stranger)
    assert stranger.lane is Lane.LONG


def test_a_cached_prompt_still_computes_its_last_tokens() -> None:
    """Even a full hit leaves something to sample from."""
    waiting, pool = queue()
    first = prompt("first", list(range(8)))
    waiting.add(first)
    compute(waiting, waiting.next_batch(0.0))
    pool.release(first.sequence.page_ids)
    again = prompt("again", list(range(8)))
    waiting.add(again)
    batch = waiting.next_batch(0.0)
    assert [(entry.sequence.request_id, tokens) for entry, tokens in batch.chunks] == [("again", 4)]
    assert again.sequence.n_computed == 4


def test_a_long_prompt_advances_in_chunks_until_it_is_complete() -> None:
    """Every token is computed once, and the prompt leaves exactly once."""
    waiting, _ = queue(policy="laps_fixed")
    waiting.add(prompt("long", list(range(30))))
    sizes, done = [], []
    while len(waiting):
        batch = waiting.next_batch(0.0)
        sizes += [tokens for _, tokens in batch.chunks]
        done += compute(waiting, batch)
    assert sizes == [8, 8, 8, 6]
    assert done == ["long"]
    assert waiting.next_batch(0.0) == PrefillBatch()


def test_prompts_without_pages_wait_and_nothing_leaks() -> None:
    """A full pool holds prompts back; given pages, they go on."""
    waiting, pool = queue(n_pages=3)
    holder = pool.allocate(2)
    waiting.add(prompt("big", list(range(12))))
    assert waiting.next_batch(0.0).chunks == ()
    assert pool.held == 2
    pool.release(holder)
    assert len(waiting.next_batch(0.0).chunks) == 1
    assert pool.held == 3


@pytest.mark.parametrize("started", [False, True])
def test_a_removed_prompt_is_never_scheduled(started: bool) -> None:
    """A cancelled request leaves the queue whether it has begun or not."""
    waiting, _ = queue(policy="laps_fixed")
    waiting.add(prompt("gone", list(range(30))))
    if started:
        compute(waiting, waiting.next_batch(0.0))
    assert waiting.remove("gone") is not None
    assert waiting.next_batch(1.0) == PrefillBatch()
    assert waiting.remove("gone") is None


def test_a_preempted_answer_goes_first() -> None:
    """It has waited already: with fcfs it is computed again before the others."""
    waiting, _ = queue()
    waiting.add(prompt("other", list(range(60)), arrival_s=0.0))
    waiting.add(prompt("preempted", list(range(100, 160)), arrival_s=-1.0), front=True)
    first = waiting.next_batch(0.0).chunks[0][0]
    assert first.sequence.request_id == "preempted"


def test_load_counts_lanes_and_uncached_tokens() -> None:
    """What routers place by."""
    waiting, _ = queue()
    waiting.add(prompt("short", list(range(5))))
    waiting.add(prompt("long", list(range(20))))
    cost = PrefillCost()
    short, long = waiting.waiting(Lane.SHORT, cost), waiting.waiting(Lane.LONG, cost)
    assert (short.prompts, short.tokens, long.prompts, long.tokens) == (1, 5, 1, 20)
    assert 0 < short.seconds < long.seconds
    assert waiting.boundary_tokens == 8


@pytest.mark.parametrize("policy", ["laps", "laps_fixed", "fcfs", "sjf", "hrrn", "chunked"])
def test_a_prompt_without_pages_does_not_stop_the_one_that_has_them(policy: str) -> None:
    """Whatever the policy prefers, what has begun goes on when nothing else can, or nobody would ever end."""
    waiting, pool = queue(n_pages=10, policy=policy)
    waiting.add(prompt("long", list(range(36))))
    # The chunked policy computes it at once.
    done = compute(waiting, waiting.next_batch(0.0))
    waiting.add(prompt("short", list(range(100, 108)), 0.001))
    for _ in range(5):
        if "long" not in done:
            done += compute(waiting, waiting.next_batch(1.0))
    assert done == ["long"]
    pool.check()
    assert pool.free == 1


def test_a_prompt_that_is_not_allowed_waits() -> None:
    """The policy does not even see it."""
    waiting, _ = queue()
    waiting.add(prompt("first", list(range(8))))
    waiting.add(prompt("second", list(range(20, 28))))
    batch = waiting.next_batch(0.0, lambda request_id: request_id == "second")
    assert compute(waiting, batch) == ["second"]
    assert not waiting.next_batch(0.0, lambda request_id: False).chunks
    assert compute(waiting, waiting.next_batch(0.0)) == ["first"]


def test_a_step_of_answers_alone_is_not_taken_for_the_last_batch() -> None:
    """The policy fits costs to batches: the time of a step without prompts must not reach it."""
    waiting, _ = queue(policy="hrrn")
    seen: list[float | None] = []
    decide = waiting.policy.decide

    class Spy:
        """Notes the time that the view gives."""

        name = "hrrn"

        def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
            """As the policy decides."""
            seen.append(view.last_batch_s)
            return decide(now_s, view)

    waiting.policy = Spy()
    waiting.add(prompt("first", list(range(4))))
    compute(waiting, waiting.next_batch(0.0))
    assert waiting.settle(waiting.next_batch(0.1), 5.0) == []
    waiting.add(prompt("second", list(range(4))))
    waiting.next_batch(0.2)
    assert seen == [None, 0.01]
