"""Who may lead: the rule over every state of the Lease, and that two never lead at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.operator.lease import DEADLINE_S, DURATION_S, RENEW_S, Seen, decide


def _lease(holder: str, version: int = 1) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": int(DURATION_S)}
    return {"metadata": {"resourceVersion": str(version)}, "spec": spec}


@pytest.mark.parametrize(
    ("lease", "seen", "now_s", "verdict"),
    [
        (None, None, 0.0, "create"),
        (_lease("me"), None, 0.0, "renew"),
        (_lease(""), None, 0.0, "take"),
        (_lease("other"), None, 1e9, "wait"),
        (_lease("other"), Seen("1", 0.0), DURATION_S - 0.1, "wait"),
        (_lease("other"), Seen("1", 0.0), DURATION_S + 0.1, "take"),
        (_lease("other", 2), Seen("1", 0.0), 1e9, "wait"),
    ],
)
def test_a_lease_is_taken_only_when_its_holder_fell_silent(
    lease: Any, seen: Any, now_s: float, verdict: str
) -> None:
    """Silence is measured by our own clock, from the last change we saw."""
    assert decide(lease, "me", seen, now_s) == verdict


def test_a_leader_gives_up_before_another_may_start() -> None:
    """The deadline and one more attempt fit into the duration."""
    assert DEADLINE_S + RENEW_S < DURATION_S


@dataclass
class _Replica:
    """A replica by the rules of Elector, one attempt at a time."""

    name: str
    seen: Seen | None = None
    leads_until: float = -1.0
    offset_s: float = 0.0
    history: list[float] = field(default_factory=list)

    def attempt(self, store: list[dict[str, Any]], now_s: float) -> None:
        """Reads the Lease and writes it if it may."""
        local_s, lease = now_s + self.offset_s, store[-1] if store else None
        if lease and (self.seen is None or self.seen.version != lease["metadata"]["resourceVersion"]):
            self.seen = Seen(lease["metadata"]["resourceVersion"], local_s)
        if decide(lease, self.name, self.seen, local_s) != "wait":
            store.append(_lease(self.name, len(store) + 1))
            self.leads_until = now_s + DEADLINE_S


@given(
    offsets=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
    steps=st.lists(st.tuples(st.integers(0, 1), st.floats(0.1, 30.0)), min_size=1, max_size=60),
)
def test_two_never_lead_at_once(offsets: tuple[float, float], steps: list[tuple[int, float]]) -> None:
    """Whatever their clocks show and however long one is cut off."""
    store: list[dict[str, Any]] = []
    replicas = [_Replica(name, offset_s=offset) for name, offset in zip("ab", offsets, strict=True)]
    now_s = 0.0
    for index, pause_s in steps:
        now_s += pause_s
        replicas[index].attempt(store, now_s)
        assert sum(replica.leads_until > now_s for replica in replicas) <= 1
