"""A mixed worker alone: exact answers whatever the load, and books that balance after every ending."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.worker.conftest import Oracle
from tests.worker.stack import DEADLINE_S, RouterEnd, until
from twolane.core.request import FinishReason, Phase, SamplingParams
from twolane.worker import service

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def prompts(n: int, seed: int, longest: int = 90) -> list[list[int]]:
    """Random prompts of all lengths, some sharing a prefix."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, 199) for _ in range(40)]
    made = []
    for index in range(n):
        own = [rng.randrange(3, 199) for _ in range(rng.randint(1, longest - 40))]
        made.append(shared[: rng.randint(0, 40)] + own if index % 2 else own)
    return made


async def test_greedy_answers_equal_transformers_under_load(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], oracle: Oracle
) -> None:
    """Twelve requests at once, chunked, batched, sharing prefixes: token for token the same."""
    worker = await new_worker("mixed", long_chunk_tokens=16, short_max_uncached_tokens=24)
    router: RouterEnd = await new_router(worker)
    asked = prompts(12, seed=1)
    answers = [
        (await router.submit(f"r{i}", tokens, Phase.BOTH, GREEDY))[1] for i, tokens in enumerate(asked)
    ]
    await until(lambda: all(answer.over for answer in answers))
    assert [answer.tokens for answer in answers] == [oracle.answer(tokens, 12) for tokens in asked]
    assert {answer.finish for answer in answers} == {FinishReason.LENGTH}
    books = await router.inspect()
    assert (books.held_pages, dict(books.requests)) == (0, {})
    worker.engine.pool.check()


async def test_answers_survive_preemption(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], oracle: Oracle
) -> None:
    """A pool too small for all answers makes some start over; what they say stays the same."""
    worker = await new_worker("mixed", kv_memory_mib=1, page_tokens=4, max_model_len=128)
    pool = worker.engine.pool
    # Leave room for about two of the four answers.
    taken = pool.allocate(pool.n_pages - 34)
    router: RouterEnd = await new_router(worker)
    asked = [prompt[:20] for prompt in prompts(4, seed=2, longest=60)]
    sampling = SamplingParams(max_tokens=60, temperature=0.0)
    answers = [
        (await router.submit(f"r{i}", tokens, Phase.BOTH, sampling))[1] for i, tokens in enumerate(asked)
    ]
    await until(lambda: all(answer.over for answer in answers))
    assert [answer.tokens for answer in answers] == [oracle.answer(tokens, 60) for tokens in asked]
    metric = worker.process._metrics.preemptions
    assert metric._value.get() > 0
    pool.release(taken)
    assert (await router.inspect()).held_pages == 0


async def test_a_preempted_answer_keeps_its_priority_and_its_due_time(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same request: where it queues again, the policy sees what it was asked for."""
    worker = await new_worker("mixed", max_model_len=128)
    router: RouterEnd = await new_router(worker)
    table, queue = worker.process._table, worker.process._parts.prefill
    queued: list[Any] = []
    add = queue.add

    def noted(prompt: Any, front: bool = False) -> None:
        queued.append((prompt, front))
        add(prompt, front=front)

    monkeypatch.setattr(queue, "add", noted)
    sampling = SamplingParams(max_tokens=100, temperature=0.0)
    asked = {"priority": 3, "ttft_slo_ms": 700}
    _, answer = await router.submit("r", [5, 6, 7], Phase.BOTH, sampling, **asked)
    await until(lambda: len(answer.tokens) > 2)
    (running,) = list(worker.process._parts.decode.members())
    worker.process._parts.decode.remove("r")
    table.preempted(running)
    (first, _), (again, at_front) = queued
    assert at_front
    assert (again.priority, again.deadline_s, again.arrival_s) == (3, first.deadline_s, first.arrival_s)
    assert again.deadline_s == pytest.approx(again.arrival_s + 0.7)


async def test_a_session_without_a_hello_is_ended(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that connects and says nothing holds no stream for ever."""
    monkeypatch.setattr(service, "HELLO_TIMEOUT_S", 0.01)
    router = RouterEnd(await new_worker("mixed"))
    try:
        with pytest.raises(grpc.aio.AioRpcError, match="no Hello came"):
            async with asyncio.timeout(DEADLINE_S):
                await router.call.read()
    finally:
        await router.close()


async def test_the_second_turn_finds_the_first_in_the_cache(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], oracle: Oracle
) -> None:
    """Prompt and answer of the first turn are not computed again."""
    router: RouterEnd = await new_router(await new_worker("mixed"))
    first = prompts(1, seed=3)[0][:30]
    _, answer = await router.submit("first", first, Phase.BOTH, GREEDY)
    await until(lambda: answer.over)
    turn = first + answer.tokens + [7, 8, 9]
    _, second = await router.submit("second", turn, Phase.BOTH, GREEDY)
    await until(lambda: second.over)
    assert second.cached_tokens == (len(first) + 11) // 4 * 4
    assert second.tokens == oracle.answer(turn, 12)


@pytest.mark.parametrize("how", ["cancel", "router gone"])
async def test_an_ended_request_holds_nothing(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], how: str
) -> None:
    """Cancelled in the middle of decoding: the pages are free again, the others go on."""
    worker = await new_worker("mixed")
    router: RouterEnd = await new_router(worker)
    endless = SamplingParams(max_tokens=100, temperature=0.0)
    stream_id, answer = await router.submit("r", [5, 6, 7], Phase.BOTH, endless)
    await until(lambda: len(answer.tokens) > 2)
    if how == "cancel":
        await router.cancel(stream_id)
    else:
        await router.close()
    pool = worker.engine.pool
    await until(lambda: pool.held == 0)
    assert len(answer.tokens) < 100
    pool.check()


async def test_deadline_ends_a_request_with_its_reason(
    new_worker: Callable[..., Any], new_router: Callable[..., Any]
) -> None:
    """Nothing is left hanging: the router hears deadline_exceeded."""
    worker = await new_worker("mixed")
    router: RouterEnd = await new_router(worker)
    # Nothing can start: somebody else holds every page.
    taken = worker.engine.pool.allocate(worker.engine.pool.n_pages)
    _, answer = await router.submit("r", [5, 6, 7], Phase.BOTH, GREEDY, timeout_ms=50)
    await until(lambda: answer.over)
    assert (answer.finish, answer.error) == (FinishReason.ERROR, "deadline_exceeded")
    worker.engine.pool.release(taken)


@pytest.mark.parametrize(
    ("tokens", "fields", "code"),
    [
        pytest.param([], {}, "invalid_request", id="empty prompt"),
        pytest.param([199], {}, "invalid_request", id="token outside the vocabulary"),
        pytest.param([5] * 128, {}, "context_too_long", id="no room for an answer"),
    ],
)
async def test_bad_requests_are_refused_at_once(
    new_worker: Callable[..., Any],
    new_router: Callable[..., Any],
    tokens: list[int],
    fields: dict[str, Any],
    code: str,
) -> None:
    """The error names the fault and nothing is kept."""
    router: RouterEnd = await new_router(await new_worker("mixed"))
    _, answer = await router.submit("r", tokens, Phase.BOTH, GREEDY, **fields)
    await until(lambda: answer.over)
    assert answer.error == code
    assert dict((await router.inspect()).requests) == {}


async def test_a_full_queue_refuses(new_worker: Callable[..., Any], new_router: Callable[..., Any]) -> None:
    """The third of three is told to come back, as max_waiting is two."""
    worker = await new_worker("mixed", max_waiting=2)
    router: RouterEnd = await new_router(worker)
    taken = worker.engine.pool.allocate(worker.engine.pool.n_pages)
    answers = [(await router.submit(f"r{i}", [5, 6], Phase.BOTH, GREEDY))[1] for i in range(3)]
    await until(lambda: answers[2].over)
    assert answers[2].error == "overloaded"
    worker.engine.pool.release(taken)
    worker.process._wake()
    await until(lambda: all(answer.over for answer in answers[:2]))
    assert [answer.error for answer in answers[:2]] == ["", ""]


async def test_a_router_with_another_tokenizer_is_refused(new_worker: Callable[..., Any]) -> None:
    """Its token ids would mean other words."""
    worker = await new_worker("mixed")
    router = RouterEnd(worker)
    with pytest.raises(Exception, match="tokenizer"):
        await router.open(tokenizer="something else")
    await router.close()
