"""The fast-forwarded decode batch against one that is played step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.one_worker import Landing, decode_side, wants
from twolane.policies.decode import DecodeSettings, decode_by_name
from twolane.sim.decode_side import DecodeSide
from twolane.sim.events import EventQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import profile_by_name
from twolane.sim.request import SimRequest

PROFILE = profile_by_name("h100_qwen3_8b")
# No two land at once: the first would start a step before the second is there.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 50_000).map(lambda ticks: ticks * 1.1e-5), st.integers(1, 3000), st.integers(2, 60)
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[0],
)


def _request(index: int, landing_s: float, prompt: int, output: int) -> SimRequest:
    request = SimRequest(index, 0.0, prompt, output, 0)
    request.generated_tokens = 1
    request.prefilled = True
    request.source = request.target = 0
    request.max_tokens = 64
    request.token_clock_s = landing_s
    return request


def _side(
    events: EventQueue, policy: str, profile: EngineProfile, longest: int
) -> tuple[DecodeSide, Landing]:
    host = Landing(events)
    chosen = decode_by_name(policy, DecodeSettings(longest))
    return decode_side(events, profile, chosen, 256, host), host


def _step_by_step(rows: Sequence[tuple[float, int, int]]) -> dict[int, float]:
    """Every step played: rows that have landed join at a boundary, each then gains a token per step."""
    waiting = sorted(range(len(rows)), key=lambda index: rows[index][0])
    running: dict[int, tuple[int, int]] = {}
    finished: dict[int, float] = {}
    now_s = 0.0
    while waiting or running:
        if not running:
            now_s = max(now_s, rows[waiting[0]][0])
        while waiting and rows[waiting[0]][0] <= now_s + 1e-12:
            index = waiting.pop(0)
            running[index] = (rows[index][1] + 1, rows[index][2] - 1)
        held = sum(tokens for tokens, _ in running.values())
        now_s += PROFILE.decode_constant_s(len(running)) + PROFILE.decode_read_s * held
        running = {index: (tokens + 1, left - 1) for index, (tokens, left) in running.items()}
        for index in [index for index, (_, left) in running.items() if left == 0]:
            finished[index] = now_s
            del running[index]
    return finished


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_fast_forward_ends_every_answer_when_single_steps_do(rows: list[tuple[float, int, int]]) -> None:
    """Rows that land at random times in the middle of steps end at the same moments."""
    events = EventQueue()
    side, host = _side(events, "conservative", PROFILE, 64)
    for index, (at_s, prompt, output) in enumerate(rows):
        events.at(at_s, partial(wants, side), _request(index, at_s, prompt, output))
    events.run()
    expected = _step_by_step(rows)
    assert host.finished.keys() == expected.keys()
    for index, at_s in expected.items():
        assert host.finished[index] == pytest.approx(at_s, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from(["past_future", "aggressive", "conservative"]))
def test_small_memory_preempts_but_loses_nobody(rows: list[tuple[float, int, int]], policy: str) -> None:
    """With room for one long row all answers still end, once each, and pages come back."""
    small = EngineProfile(0.001, 0.005, 1e-5, 1e-10, 1e-8, 1e-8, 1000, 3300, 1e9, 0.001)
    events = EventQueue()
    side, host = _side(events, policy, small, 64)
    for index, (at_s, prompt, output) in enumerate(rows):
        events.at(at_s, partial(wants, side), _request(index, at_s, prompt, output))
    while events.step():
        assert side.used_tokens <= small.capacity_tokens
    assert len(host.finished) == len(rows)
    assert side.is_empty


@settings(max_examples=40, deadline=None)
@given(ROWS, st.dictionaries(st.integers(0, 11), st.floats(0, 0.8), max_size=6))
def test_cancelled_answers_free_their_pages(
    rows: list[tuple[float, int, int]], cancels: dict[int, float]
) -> None:
    """Wherever it is, a cancelled request leaves and the others end."""
    events = EventQueue()
    side, host = _side(events, "past_future", PROFILE, 64)
    requests = [_request(index, at_s, prompt, output) for index, (at_s, prompt, output) in enumerate(rows)]
    for request, (at_s, _, _) in zip(requests, rows, strict=True):
        events.at(at_s, partial(wants, side), request)
    for index, at_s in cancels.items():
        if index < len(rows) and at_s >= rows[index][0]:
            events.at(at_s, side.cancel, requests[index])
    events.run()
    assert side.is_empty
    assert side.used_tokens == 0
    assert all(index in host.finished or index in cancels for index in range(len(rows)))


def test_the_worst_gap_is_the_longest_step_of_a_rows_life() -> None:
    """A row that runs while another joins sees the longer step; the wait to join counts, too."""
    events = EventQueue()
    side, _ = _side(events, "conservative", PROFILE, 64)
    first, second = _request(0, 0.0, 10, 40), _request(1, 0.05, 100_000, 10)
    events.at(0.0, partial(wants, side), first)
    events.at(0.05, partial(wants, side), second)
    events.run()
    longest_s = PROFILE.decode_constant_s(2) + PROFILE.decode_read_s * 100_050
    assert first.worst_gap_s == pytest.approx(longest_s, rel=1e-3)
    assert second.worst_gap_s >= longest_s
