"""An audit finds every kind of difference between the books, and none in a cluster that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.stack import GREEDY, Pair, until
from twolane.cli.inspect import InspectConfig, audit, differences, read
from twolane.core.errors import Unavailable
from twolane.core.request import Phase
from twolane.v1 import broker_pb2, transfer_pb2, worker_pb2


def entry(owner: bool, **changed: Any) -> worker_pb2.LeaseEntry:
    """A lease of "d" for "p" in a worker's books."""
    fields: dict[str, Any] = {
        "lease_id": "l",
        "request_id": "r",
        "fence": 7,
        "peer_id": "p" if owner else "d",
    }
    return worker_pb2.LeaseEntry(owner=owner, **(fields | changed))


def books(*leases: worker_pb2.LeaseEntry, **changed: Any) -> worker_pb2.InspectResponse:
    """A worker with one request that holds two of its ten pages."""
    pages = {"total_pages": 10, "empty_pages": 5, "cached_pages": 3, "held_pages": 2, "request_pages": 2}
    fields = pages | {"requests": {"r": "running"}, "leases": leases} | changed
    return worker_pb2.InspectResponse(**fields)


def broker_books(*leases: transfer_pb2.Lease) -> broker_pb2.BrokerInspectResponse:
    """A broker that knows both workers."""
    workers = [broker_pb2.WorkerInfo(worker_id=name) for name in ("d", "p")]
    return broker_pb2.BrokerInspectResponse(workers=workers, leases=leases)


LEASE = transfer_pb2.Lease(lease_id="l", request_id="r", owner_id="d", writer_id="p", fence=7)


def test_books_that_agree_differ_in_nothing() -> None:
    """One lease in three books."""
    workers = {"d": books(entry(True)), "p": books(entry(False))}
    assert differences(broker_books(LEASE), workers) == []


@pytest.mark.parametrize(
    ("at_broker", "at_owner", "at_writer", "said"),
    [
        ([LEASE], books(), books(), "in the broker's books, not in those of its owner d"),
        ([], books(entry(True)), books(entry(False)), "in the books of its owner d, not in the broker's"),
        ([], books(), books(entry(False)), "p writes under it, its owner d has closed it"),
        ([LEASE], books(entry(True, fence=8)), books(), "fence 7 at the broker, 8 at its owner"),
        ([LEASE], books(entry(True), requests={}), books(), "is for request r, which it does not have"),
        ([], books(held_pages=3, empty_pages=4), books(), "1 pages are held by no request"),
        ([], books(request_pages=3), books(), "requests name 1 pages that nobody holds"),
        ([], books(empty_pages=4), books(), "10 pages in all, but 9 are empty, cached or held"),
        ([], books(pool_fault="page 3 is free twice"), books(), "page 3 is free twice"),
        ([], Unavailable("no answer"), books(), "gives no account: no answer"),
    ],
)
def test_each_kind_of_difference_is_named(at_broker: Any, at_owner: Any, at_writer: Any, said: str) -> None:
    """One line that says which lease or worker, and what is wrong."""
    (line,) = differences(broker_books(*at_broker), {"d": at_owner, "p": at_writer})
    assert said in line


def test_a_lease_of_a_worker_that_left_is_a_leak() -> None:
    """Nobody is left to give it back."""
    gone = transfer_pb2.Lease(lease_id="x", owner_id="gone", writer_id="p")
    (line,) = differences(broker_books(gone), {"d": books(), "p": books()})
    assert "gone" in line


async def test_a_working_cluster_has_no_differences_and_a_leak_is_found(
    new_pair: Callable[..., Any],
    broker: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a transfer open, after it, and then with a page that someone took and forgot."""
    pair: Pair = await new_pair()
    config = InspectConfig(broker=broker, settle_s=0.1)
    pool = pair.prefill.engine.pool
    taken = pool.allocate(pool.n_pages)
    _, second = await pair.to_decode.submit("r", [5] * 9, Phase.DECODE, GREEDY, peer=pair.prefill.peer)
    await pair.to_prefill.submit("r", [5] * 9, Phase.PREFILL, GREEDY, peer=pair.decode.peer)
    await until(lambda: pair.prefill.process._sender.lease_ids() != [])
    found, compared = await read(config)
    assert found == [
        f"worker {pair.prefill.process.identity.worker_id}: {len(taken)} pages are held by no request"
    ]
    assert "2 workers, 1 leases, 2 requests" in compared
    pool.release(taken)
    pair.prefill.process._wake()
    await until(lambda: second.over)
    assert await audit(config) == 0
    pair.decode.engine.pool.allocate(1)
    assert await audit(config) == 1
    assert "1 pages are held by no request" in capsys.readouterr().out


async def test_a_load_that_stays_is_reported_once_more(
    new_worker: Callable[..., Any], new_router: Callable[..., Any]
) -> None:
    """The first report may cross a submission on its way, the second tells the router that it is counted."""
    router = await new_router(await new_worker("mixed"))
    await until(lambda: len(router.loads) >= 2)
    assert router.loads[0] == router.loads[1]
