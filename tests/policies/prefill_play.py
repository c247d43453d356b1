"""Plays a prefill policy in virtual time against arrivals and aborts, checking every decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twolane.core.request import Lane
from twolane.policies.prefill import PrefillDecision, PrefillPolicy, PrefillView, WaitingPrefill

Work = list[tuple[int, int]]


def linear_step_s(work: Work) -> float:
    """A step of 8 ms plus 25 µs per token."""
    return 0.008 + 25e-6 * sum(new for new, _ in work)


@dataclass
class Played:
    """What happened.

    Attributes:
        finished_s: end of each prompt that was computed.
        batches: start, end, lane and prompts of every batch.
        waits: every decision to wait: when, until when, and the prompts that waited.
        memory: the policy's last memory.
    """

    finished_s: dict[str, float] = field(default_factory=dict)
    batches: list[tuple[float, float, Lane, list[str]]] = field(default_factory=list)
    waits: list[tuple[float, float, tuple[WaitingPrefill, ...]]] = field(default_factory=list)
    memory: Any = None


def play(
    policy: PrefillPolicy,
    arrivals: Sequence[WaitingPrefill],
    aborts_s: dict[str, float] | None = None,
    step_s: Callable[[Work], float] = linear_step_s,
) -> Played:
    """Runs until everything is computed or aborted; raises AssertionError when the policy errs."""
    pending = sorted(arrivals, key=lambda prompt: prompt.arrival_s)
    aborts_s = aborts_s or {}
    waiting: dict[str, WaitingPrefill] = {}
    played = Played()
    now_s, last_s, last_lane = 0.0, None, None
    for _ in range(200_000):
        while pending and pending[0].arrival_s <= now_s:
            prompt = pending.pop(0)
            waiting[prompt.request_id] = prompt
        for name in [name for name in waiting if aborts_s.get(name, float("inf")) <= now_s]:
            del waiting[name]
        if not waiting:
            if not pending:
                return played
            now_s = pending[0].arrival_s
            continue
        view = PrefillView(tuple(waiting.values()), played.memory, last_s, last_lane)
        decision = policy.decide(now_s, view)
        played.memory = decision.memory
        _check(decision, waiting)
        if not decision.chunks:
            assert decision.wake_s is not None
            assert decision.wake_s > now_s
            played.waits.append((now_s, decision.wake_s, view.waiting))
            now_s = min([decision.wake_s, *(prompt.arrival_s for prompt in pending[:1])])
            continue
        now_s, last_s, last_lane = _run(decision, waiting, played, now_s, step_s)
    raise AssertionError("the policy never finishes")


def _check(decision: PrefillDecision, waiting: dict[str, WaitingPrefill]) -> None:
    names = [chunk.request_id for chunk in decision.chunks]
    assert len(names) == len(set(names)), "a prompt twice in a batch"
    for chunk in decision.chunks:
        assert chunk.request_id in waiting, "a prompt that does not wait"
        assert 1 <= chunk.tokens <= waiting[chunk.request_id].uncached_tokens


def _run(
    decision: PrefillDecision,
    waiting: dict[str, WaitingPrefill],
    played: Played,
    now_s: float,
    step_s: Callable[[Work], float],
) -> tuple[float, float, Lane]:
    names = [chunk.request_id for chunk in decision.chunks]
    lane = waiting[names[0]].lane
    seconds = step_s([(chunk.tokens, waiting[chunk.request_id].cached_tokens) for chunk in decision.chunks])
    end_s = now_s + seconds
    played.batches.append((now_s, end_s, lane, names))
    for chunk in decision.chunks:
        prompt = waiting[chunk.request_id]
        left = prompt.uncached_tokens - chunk.tokens
        if left:
            done = prompt.cached_tokens + chunk.tokens
            waiting[chunk.request_id] = replace(prompt, uncached_tokens=left, cached_tokens=done)
        else:
            assert chunk.request_id not in played.finished_s, "finished twice"
            played.finished_s[chunk.request_id] = end_s
            del waiting[chunk.request_id]
    return end_s, seconds, lane
