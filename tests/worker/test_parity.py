"""The parity probe counts equal answers as the same and finds one that decoded a damaged page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.stack import GREEDY, Pair, until
from tests.worker.test_mixed import prompts
from twolane.core.request import SamplingParams
from twolane.engine.sequence import Sequence
from twolane.telemetry.metrics import new_registry
from twolane.worker.parity import ParityProbe


def checks(pair: Pair, outcome: str) -> float:
    """Checks of the decode worker by outcome."""
    return float(pair.decode.process._probe._count.labels(outcome)._value.get())


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(max_tokens=12, temperature=1.0, seed=3, top_p=0.9)]
)
async def test_answers_after_a_transfer_are_the_same(
    new_pair: Callable[..., Any], sampling: SamplingParams
) -> None:
    """Drawn or greedy, one after the other so that the probe finds the worker idle; nothing is leaked."""
    pair: Pair = await new_pair(parity_share=1.0)
    for index, tokens in enumerate(prompts(4, seed=31)):
        _, second = await pair.ask(f"r{index}", tokens, sampling)
        await until(lambda: second.over)  # noqa: B023
        await until(lambda: checks(pair, "same") == index + 1)  # noqa: B023
    assert checks(pair, "differs") == checks(pair, "failed") == 0
    assert pair.held() == (0, 0)


async def test_a_damaged_page_is_found(new_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages change after every check of the transfer has passed: only the tokens tell."""
    pair: Pair = await new_pair(parity_share=1.0)
    landing, store = pair.decode.process._landing, pair.decode.process._store
    hand_over = landing._on_handover

    def damage(request_id: str, tokens: list[int]) -> None:
        store.pages.view("float32")[:] *= -3.0
        hand_over(request_id, tokens)

    monkeypatch.setattr(landing, "_on_handover", damage)
    _, second = await pair.ask("r", list(range(10, 60)))
    await until(lambda: second.over)
    await until(lambda: checks(pair, "differs") == 1)


async def test_a_small_share_is_replayed_now_and_then(new_pair: Callable[..., Any]) -> None:
    """A quarter: every fourth."""
    pair: Pair = await new_pair(parity_share=0.25)
    for index, tokens in enumerate(prompts(9, seed=32)):
        _, second = await pair.ask(f"r{index}", tokens)
        await until(lambda: second.over)  # noqa: B023
    await until(lambda: checks(pair, "same") == 2)
    await until(lambda: pair.held() == (0, 0))
    assert checks(pair, "same") == 2


async def test_a_busy_time_is_not_made_up_for() -> None:
    """After a thousand answers that could not be replayed the share is what it was."""
    submitted: list[Any] = []
    busy = True
    probe = ParityProbe(
        0.25, lambda: not busy, lambda _outbox, submit: submitted.append(submit), new_registry()
    )
    sequence = Sequence("r", [3, 4, 5, 6], 2, GREEDY)
    for _ in range(1000):
        probe.finished(sequence)
    busy = False
    for _ in range(9):
        probe.finished(sequence)
    await until(lambda: bool(submitted))
    assert len(submitted) == 3
