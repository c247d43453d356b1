"""Workers and leases that come back after the books were lost, or that began while nobody kept any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from twolane.core.errors import LeaseInvalid
from twolane.state.records import LeaseRequest
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import TRANSPORT_GRPC, Lease

LONG_S = 1000.0
# A number that another life of the books gave: far above what this one gives.
FAR = 8_000_000_000_000_000

Make = Callable[..., WorkerInfo]


def lease_between(owner: int, writer: int, fence: int = FAR) -> Lease:
    """A lease of "d" for "p" that the books do not know."""
    return Lease(
        lease_id="own-d-1",
        request_id="r",
        owner_id="d",
        owner_incarnation=owner,
        writer_id="p",
        writer_incarnation=writer,
        fence=fence,
        ttl_ms=1000,
        transport=TRANSPORT_GRPC,
    )


async def pair(store: Any, make_worker: Make) -> tuple[int, int]:
    """Registers owner "d" and writer "p"; returns their incarnations."""
    owner = await store.state.register(make_worker("d"), [], LONG_S)
    writer = await store.state.register(make_worker("p"), [], LONG_S)
    return owner.incarnation, writer.incarnation


async def test_a_worker_that_comes_back_keeps_its_incarnation(store: Any, make_worker: Make) -> None:
    """Nobody has to notice that the books were lost; numbers given later are greater."""
    back = await store.state.register(make_worker("w", incarnation=FAR), [], LONG_S)
    assert back.incarnation == FAR
    assert (await store.state.register(make_worker("other"), [], LONG_S)).incarnation > FAR
    again = await store.state.register(make_worker("w", incarnation=FAR), [], LONG_S)
    assert again.incarnation == FAR


async def test_a_worker_that_registers_twice_keeps_its_leases(store: Any, make_worker: Make) -> None:
    """The answer to its registration got lost: the transfer goes on."""
    owner, writer = await pair(store, make_worker)
    lease = await store.state.grant_lease(LeaseRequest("r", "d", owner, "p", writer, TRANSPORT_GRPC), LONG_S)
    await store.state.register(make_worker("p", incarnation=writer), [], LONG_S)
    assert await store.state.leases() == [lease]


async def test_a_replaced_worker_does_not_get_its_incarnation_back(store: Any, make_worker: Make) -> None:
    """Another process registered under the id: the old one is a new worker to everybody."""
    first = await store.state.register(make_worker("w"), [], LONG_S)
    second = await store.state.register(make_worker("w"), [], LONG_S)
    third = await store.state.register(make_worker("w", incarnation=first.incarnation), [], LONG_S)
    assert first.incarnation < second.incarnation < third.incarnation


async def test_an_unknown_lease_is_adopted_as_it_is(store: Any, make_worker: Make) -> None:
    """It is listed, renewed and released like any other, and later fences are above its own."""
    owner, writer = await pair(store, make_worker)
    lease = lease_between(owner, writer)
    assert await store.state.renew_leases("d", owner, [lease.lease_id], LONG_S) == [lease.lease_id]
    assert await store.state.adopt_lease(lease, LONG_S)
    assert await store.state.leases() == [lease]
    assert await store.state.renew_leases("d", owner, [lease.lease_id], LONG_S) == []
    granted = await store.state.grant_lease(
        LeaseRequest("r", "d", owner, "p", writer, TRANSPORT_GRPC), LONG_S
    )
    assert granted.fence > FAR
    assert await store.state.release_leases("d", owner, [lease.lease_id]) == 1


async def test_an_adopted_lease_expires(store: Any, make_worker: Make) -> None:
    """An owner that dies afterwards leaves nothing behind."""
    owner, writer = await pair(store, make_worker)
    assert await store.state.adopt_lease(lease_between(owner, writer), store.short_ttl_s)

    async def gone() -> bool:
        return bool(await store.state.leases() == [])

    await store.until(gone)
    assert (await store.state.sweep()).expired_leases == ("own-d-1",)


@pytest.mark.parametrize("missing", ["d", "p"])
async def test_a_lease_waits_for_workers_that_have_yet_to_come_back(
    store: Any, make_worker: Make, missing: str
) -> None:
    """After a loss one side registers before the other: that is no reason to end a transfer."""
    (present,) = {"d", "p"} - {missing}
    given = await store.state.register(make_worker(present, incarnation=5), [], LONG_S)
    assert not await store.state.adopt_lease(lease_between(given.incarnation, given.incarnation), LONG_S)
    assert await store.state.leases() == []


@pytest.mark.parametrize("side", ["owner", "writer"])
async def test_a_lease_of_a_replaced_worker_is_not_adopted(store: Any, make_worker: Make, side: str) -> None:
    """Its pages must be closed to the old process."""
    owner, writer = await pair(store, make_worker)
    old = lease_between(owner + (side == "owner"), writer + (side == "writer"))
    with pytest.raises(LeaseInvalid, match=f"the {side} .* was replaced"):
        await store.state.adopt_lease(old, LONG_S)
    assert await store.state.leases() == []
