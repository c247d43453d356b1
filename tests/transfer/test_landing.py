"""No push may touch a page without a lease that is open, of the right fence and not expired."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.transfer.test_transports import PAGE_BYTES, filled_store
from twolane.core.errors import TwolaneError
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.transfer.metrics import TransferMetrics
from twolane.transfer.page_store import Layers
from twolane.transfer.transports import codecs
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import types_pb2


class Owner:
    """A landing with a clock that the test turns, and what it reported."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.store = filled_store(1)
        self.handovers: list[tuple[str, list[int]]] = []
        self.aborts: list[tuple[str, TwolaneError]] = []
        self.registry = CollectorRegistry()
        self.landing = Landing(
            self.store,
            codecs(self.store),
            lambda: self.now_s,
            lambda request_id, tokens: self.handovers.append((request_id, tokens)),
            lambda request_id, error: self.aborts.append((request_id, error)),
            TransferMetrics(self.registry),
        )
        lease = pb.Lease(lease_id="l", request_id="r", fence=5, ttl_ms=1000, transport=pb.TRANSPORT_GRPC)
        self.landing.expect(ExpectedPages(lease, (2, 3), 30, expires_s=1.0))

    @property
    def bytes(self) -> float:
        """Bytes that landed, by the metrics."""
        name = "twolane_worker_landed_bytes_total"
        return self.registry.get_sample_value(name, {"transport": "grpc"}) or 0.0

    def push(self, push: pb.PagePush) -> str:
        """Applies a push and returns the code of the answer."""
        return self.landing.apply(push).error.code


def run_push(page_ids: list[int], *, lease_id: str = "l", fence: int = 5) -> pb.PagePush:
    """A push of random pages."""
    writer = filled_store(9)
    (packed,) = codecs(writer)[pb.TRANSPORT_GRPC].pack(list(range(len(page_ids))), page_ids, Layers(0, 1))
    return pb.PagePush(lease_id=lease_id, fence=fence, run=packed.run)


def handover_push(prompt_tokens: int = 30) -> pb.PagePush:
    """The end of the prompt."""
    return pb.PagePush(
        lease_id="l", fence=5, handover=pb.Handover(generated_tokens=[42], prompt_tokens=prompt_tokens)
    )


def test_a_prompt_lands_and_hands_over() -> None:
    """Pages, then the handover: the owner learns of the first token once, and the lease is closed."""
    owner = Owner()
    assert owner.push(run_push([2, 3])) == ""
    np.testing.assert_array_equal(owner.store.pages[[2, 3]], filled_store(9).pages[[0, 1]])
    assert owner.bytes == 2 * PAGE_BYTES
    assert owner.push(handover_push()) == ""
    assert owner.handovers == [("r", [42])]
    assert owner.push(handover_push()) == "lease_invalid"
    assert owner.landing.lease_ids() == []


@pytest.mark.parametrize(
    "push",
    [
        pytest.param(run_push([2], lease_id="other"), id="unknown lease"),
        pytest.param(run_push([2], fence=4), id="older fence"),
        pytest.param(run_push([2], fence=6), id="newer fence"),
        pytest.param(run_push([1, 2]), id="page outside the lease"),
        pytest.param(pb.PagePush(lease_id="l", fence=5), id="nothing inside"),
    ],
)
def test_a_push_without_right_changes_nothing(push: pb.PagePush) -> None:
    """It is refused and every byte of the pool stays."""
    owner = Owner()
    before = owner.store.pages.copy()
    assert owner.push(push) == "lease_invalid"
    np.testing.assert_array_equal(owner.store.pages, before)


def test_an_expired_lease_lands_nothing_until_it_is_renewed() -> None:
    """A writer that slept past the expiry comes too late."""
    owner = Owner()
    owner.now_s = 1.0
    assert owner.push(run_push([2])) == "lease_invalid"
    owner.landing.renew("l", 2.0)
    assert owner.push(run_push([2])) == ""


def test_an_expiry_counts_once_however_many_pushes_come_too_late() -> None:
    """The alert on expired leases means leases, not messages."""
    owner = Owner()
    owner.now_s = 1.0
    for _ in range(3):
        assert owner.push(run_push([2])) == "lease_invalid"
    assert owner.landing.end("l")
    name = "twolane_worker_lease_expiries_total"
    assert owner.registry.get_sample_value(name, {"transport": "grpc"}) == 1


def test_a_handover_needs_every_page_and_the_same_prompt() -> None:
    """Decoding on missing pages would give wrong words without an error."""
    owner = Owner()
    assert owner.push(run_push([2])) == ""
    assert owner.push(handover_push()) == "lease_invalid"
    assert owner.push(run_push([3])) == ""
    assert owner.push(handover_push(prompt_tokens=29)) == "lease_invalid"
    assert owner.handovers == []


def test_the_writer_can_give_up() -> None:
    """Its reason reaches the owner and the lease is closed."""
    owner = Owner()
    abort = types_pb2.Error(code="deadline_exceeded", message="too late")
    assert owner.push(pb.PagePush(lease_id="l", fence=5, abort=abort)) == ""
    assert [(request_id, error.code) for request_id, error in owner.aborts] == [("r", "deadline_exceeded")]
    assert owner.push(run_push([2])) == "lease_invalid"
