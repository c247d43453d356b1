"""Skipping disaggregation: allowed when it helps the request and holds nobody up, never otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.skip import SkipView, skip_pays

IDLE = SkipView(
    uncached_tokens=40,
    cached_tokens=2000,
    decode_cached_tokens=2000,
    boundary_tokens=256,
    prefill_wait_s=0.0,
    transfer_s=0.01,
    decode_rows=0,
    decode_held_tokens=0,
    tpot_limit_s=0.1,
)


def _pays(view: SkipView) -> bool:
    return skip_pays(view, PrefillCost(), DecodeCost())


def test_an_idle_decode_worker_takes_a_short_prompt() -> None:
    """It saves the transfer."""
    assert _pays(IDLE)


@pytest.mark.parametrize(
    "change",
    [
        {"uncached_tokens": 257},
        {"decode_cached_tokens": 0},
        {"decode_rows": 200, "decode_held_tokens": 400_000, "tpot_limit_s": 0.03},
        {"transfer_s": 0.0},
        {"decode_rows": 100, "decode_held_tokens": 300_000},
    ],
    ids=["long", "long there", "answers held up", "nothing to save", "slower than the prefill worker"],
)
def test_otherwise_the_prompt_goes_the_usual_way(change: dict[str, float]) -> None:
    """Each reason alone forbids it."""
    assert not _pays(replace(IDLE, **change))  # type: ignore[arg-type]


def test_a_queue_at_the_prefill_worker_speaks_for_it() -> None:
    """A busy decode worker is the better place when the prefill worker is busier."""
    busy = replace(IDLE, decode_rows=20, decode_held_tokens=40_000)
    assert not _pays(busy)
    assert _pays(replace(busy, prefill_wait_s=0.5))
