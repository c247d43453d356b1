"""Renewals that carry leases in full: what a broker without books takes over, and what must end."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from twolane.rpc.channel import to_twolane_error
from twolane.v1 import broker_pb2 as pb
from twolane.v1.transfer_pb2 import Lease
from twolane.v1.types_pb2 import ROLE_DECODE


def worker(worker_id: str, incarnation: int = 0) -> pb.WorkerInfo:
    """A worker of model "m"."""
    info = pb.WorkerInfo(
        worker_id=worker_id, incarnation=incarnation, address=f"{worker_id}:9100", role=ROLE_DECODE
    )
    info.fingerprint.model = "m"
    return info


async def register(running: Any, worker_id: str, incarnation: int = 0) -> int:
    """Registers; returns the incarnation given."""
    request = pb.RegisterRequest(worker=worker(worker_id, incarnation))
    return int((await running.stub.Register(request)).incarnation)


def lease_of(owner: int, writer: int, owner_id: str = "d") -> Lease:
    """A lease that the broker does not know."""
    return Lease(
        lease_id="own-1",
        request_id="r",
        owner_id=owner_id,
        owner_incarnation=owner,
        writer_id="p",
        writer_incarnation=writer,
        fence=9,
        ttl_ms=1000,
    )


async def renew(running: Any, owner: int, *leases: Lease, in_full: bool = True) -> list[str]:
    """Renews as "d"; returns what must end."""
    request = pb.RenewLeasesRequest(
        owner_id="d",
        owner_incarnation=owner,
        lease_ids=[lease.lease_id for lease in leases],
        leases=leases if in_full else (),
    )
    return list((await running.stub.RenewLeases(request)).expired)


async def test_workers_come_back_and_their_leases_with_them(start_broker: Any) -> None:
    """Both sides keep the incarnations of another life; the lease is listed as it was."""
    running = await start_broker()
    assert await register(running, "d", 700) == 700
    lease = lease_of(700, 800)
    # The writer has yet to come back: neither ended nor listed.
    assert await renew(running, 700, lease) == []
    assert list((await running.stub.Inspect(pb.BrokerInspectRequest())).leases) == []
    assert await register(running, "p", 800) == 800
    assert await renew(running, 700, lease) == []
    assert list((await running.stub.Inspect(pb.BrokerInspectRequest())).leases) == [lease]


async def test_a_lease_that_is_named_only_is_expired(start_broker: Any) -> None:
    """Without its content there is nothing to take over."""
    running = await start_broker()
    owner, writer = await register(running, "d"), await register(running, "p")
    assert await renew(running, owner, lease_of(owner, writer), in_full=False) == ["own-1"]


async def test_a_lease_of_a_replaced_writer_must_end(start_broker: Any) -> None:
    """Another process has its name now."""
    running = await start_broker()
    owner, writer = await register(running, "d"), await register(running, "p")
    assert await renew(running, owner, lease_of(owner, writer)) == []
    await register(running, "p")
    assert await renew(running, owner, lease_of(owner, writer)) == ["own-1"]


async def test_nobody_renews_the_lease_of_another(start_broker: Any) -> None:
    """A lease in full must be the caller's own."""
    running = await start_broker()
    owner, writer = await register(running, "d"), await register(running, "p")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await renew(running, owner, lease_of(owner, writer, owner_id="other"))
    assert to_twolane_error(raised.value).code == "invalid_request"
