"""Errors of a new revision, compared with those of the old one, send the requests back to that."""

from __future__ import annotations

from typing import Any

import pytest

from tests.operator.objects import World
from tests.operator.rollouts import change, counts, report, rollout, settled
from twolane.core.errors import ERRORS_BY_CODE
from twolane.operator.actions import Scale
from twolane.operator.progress import served_by
from twolane.operator.scrape import Reading, Sample


def test_errors_of_a_new_revision_send_the_traffic_back_at_once() -> None:
    """All its pods are ready; its routers end in the turn that sees the errors, the workers after them."""
    world = settled()
    old, new = change(world)
    for _ in range(6):
        world.follow()
        world.turn()
    assert world.condition("RolloutComplete")["reason"] == "Soaking"
    assert counts(world, old) == {"demo-broker": 1, "demo-decode": 1, "demo-prefill": 1, "demo-router": 1}
    report(world, new, ok=80, internal=15, worker_lost=5, cancelled=900, draining=50)
    actions = world.turn().actions
    scaled = {action.name: action.replicas for action in actions if isinstance(action, Scale)}
    assert scaled == {
        f"demo-router-{new}": 0,
        f"demo-router-{old}": 2,
        f"demo-prefill-{old}": 2,
        f"demo-decode-{old}": 2,
    }
    assert "20 of 150 requests failed, most with internal" in world.condition("RolloutComplete")["message"]
    world.settle()
    assert counts(world, old)["demo-decode"] == 2
    assert counts(world, new) == {}


@pytest.mark.parametrize(
    ("outcomes", "rollback"),
    [
        ({"ok": 5, "internal": 5}, {}),
        ({"ok": 95, "internal": 5}, {}),
        ({"ok": 10, "cancelled": 90, "invalid_request": 50, "overloaded": 50, "draining": 50}, {}),
        ({"internal": 100}, {"enabled": False}),
        ({"ok": 50, "internal": 50}, {"maxErrorPercent": 50}),
    ],
)
def test_few_errors_or_those_of_clients_stop_nothing(
    outcomes: dict[str, float], rollback: dict[str, Any]
) -> None:
    """Too few requests to judge, below the bound, others' faults, or nobody wants it."""
    world = settled(rollout=rollout(**rollback))
    _, new = change(world)
    for _ in range(6):
        world.follow()
        world.turn()
    report(world, new, **outcomes)
    world.settle()
    assert world.condition("RolloutComplete")["reason"] == "UpToDate"
    assert world.md["status"]["servingRevisions"] == [new]


def _side_by_side(world: World, **before: float) -> tuple[str, str]:
    """Both revisions serve, and the old one's routers had ended these requests when that began."""
    report(world, world.md["status"]["revision"], **before)
    old, new = change(world)
    for _ in range(6):
        world.follow()
        world.turn()
    assert world.condition("RolloutComplete")["reason"] == "Soaking"
    return old, new


@pytest.mark.parametrize(
    ("before", "meanwhile", "fresh"),
    [
        # A model that always has some errors.
        ({"ok": 950, "internal": 50}, {"ok": 1900, "internal": 100}, {"ok": 89, "internal": 11}),
        # Something that both revisions need has just failed; until then all was well.
        ({"ok": 100_000}, {"ok": 100_010, "unavailable": 90}, {"unavailable": 100}),
        # Too few meanwhile to tell: what they have always done counts.
        ({"ok": 80, "internal": 20}, {"ok": 81, "internal": 20}, {"ok": 75, "internal": 25}),
        # The old router started anew.
        ({"ok": 1000}, {"ok": 60, "internal": 40}, {"ok": 55, "internal": 45}),
    ],
)
def test_errors_that_the_old_revision_has_too_stop_nothing(
    before: dict[str, float], meanwhile: dict[str, float], fresh: dict[str, float]
) -> None:
    """They are no fault of the new one."""
    world = settled()
    old, new = _side_by_side(world, **before)
    report(world, old, **meanwhile)
    report(world, new, **fresh)
    world.settle()
    assert world.condition("RolloutComplete")["reason"] == "UpToDate"
    assert world.md["status"]["servingRevisions"] == [new]


def test_errors_beyond_those_of_the_old_revision_in_the_same_time_are_a_failure() -> None:
    """However many it had long ago."""
    world = settled()
    old, new = _side_by_side(world, ok=100, internal=900)
    report(world, old, ok=195, internal=905)
    report(world, new, ok=80, internal=20)
    world.settle()
    assert world.md["status"]["servingRevisions"] == [old]
    message = world.condition("RolloutComplete")["message"]
    assert "20 of 100 requests failed, most with internal; 5% do with the previous revision" in message


def test_every_fault_of_a_server_counts_and_no_other() -> None:
    """The error tree says whose fault an outcome is."""
    for code, kind in ERRORS_BY_CODE.items():
        reading = Reading(0.0, (Sample("twolane_router_requests_total", {"outcome": code}, 1.0),))
        expected = {code} if kind.http_status >= 500 and code != "draining" else set()
        assert set(served_by(reading).faults) == expected, code
