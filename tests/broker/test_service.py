"""twolane.v1.Broker over a real connection: registration, heartbeats, leases, books."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from twolane.core.errors import Incompatible, InvalidRequest, LeaseInvalid, NotFound, TwolaneError
from twolane.rpc.channel import to_twolane_error
from twolane.v1 import broker_pb2 as pb
from twolane.v1.transfer_pb2 import TRANSPORT_GRPC, TRANSPORT_NIXL, TRANSPORT_SHARED_MEMORY
from twolane.v1.types_pb2 import ROLE_DECODE
from twolane.v1.worker_pb2 import Load

Make = Callable[..., pb.WorkerInfo]
A, B = b"a" * 16, b"b" * 16


async def refused(call: Any) -> TwolaneError:
    """The error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return to_twolane_error(caught.value)


async def register(running: Any, worker: pb.WorkerInfo, *hashes: bytes) -> int:
    """Registers a worker; returns its incarnation."""
    answer = await running.stub.Register(pb.RegisterRequest(worker=worker, prefix_hashes=hashes))
    return int(answer.incarnation)


async def pair(running: Any, make_worker: Make) -> pb.GrantLeaseRequest:
    """Registers owner "d" and writer "p"; returns a request for a lease between them."""
    owner = await register(running, make_worker("d", role=ROLE_DECODE))
    writer = await register(running, make_worker("p"))
    return pb.GrantLeaseRequest(
        request_id="r",
        owner_id="d",
        owner_incarnation=owner,
        writer_id="p",
        writer_incarnation=writer,
        n_pages=7,
    )


async def test_registration_tells_incarnation_and_heartbeat_interval(
    start_broker: Any, make_worker: Make
) -> None:
    """The interval is the configured one."""
    running = await start_broker(heartbeat_interval_s=0.75)
    answer = await running.stub.Register(pb.RegisterRequest(worker=make_worker("w")))
    assert answer.incarnation > 0
    assert answer.heartbeat_interval_ms == 750
    assert running.metric("registrations_total", outcome="accepted") == 1


async def test_a_fingerprint_that_differs_is_refused_field_by_field(running: Any, make_worker: Make) -> None:
    """The message has each differing field with both values, and what to do."""
    await register(running, make_worker("a", page_tokens=16, kv_dtype="float32"))
    other = make_worker("b", page_tokens=32, kv_dtype="float16")
    error = await refused(running.stub.Register(pb.RegisterRequest(worker=other)))
    assert isinstance(error, Incompatible)
    assert "'b' differs from 'a'" in error.message
    assert "page_tokens 32 != 16" in error.message
    assert "kv_dtype 'float16' != 'float32'" in error.message
    assert "vocab_size" not in error.message
    assert running.metric("registrations_total", outcome="incompatible") == 1


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"worker_id": ""}, "worker.worker_id"),
        ({"address": ""}, "worker.address"),
        ({"model": ""}, "worker.fingerprint.model"),
        ({"role": 0}, "worker.role"),
        ({"role": 99}, "role"),
        ({"lane": 99}, "lane"),
    ],
)
async def test_a_worker_that_lacks_what_others_need_is_refused(
    running: Any, make_worker: Make, changed: dict[str, Any], field: str
) -> None:
    """The field at fault is named."""
    worker = make_worker(**({"worker_id": "w"} | changed))
    error = await refused(running.stub.Register(pb.RegisterRequest(worker=worker)))
    assert isinstance(error, InvalidRequest)
    assert error.param == field


async def test_hashes_of_a_wrong_length_are_refused(running: Any, make_worker: Make) -> None:
    """At registration and in heartbeats."""
    request = pb.RegisterRequest(worker=make_worker("w"), prefix_hashes=[A, b"short"])
    assert (await refused(running.stub.Register(request))).param == "prefix_hashes"
    beat = pb.HeartbeatRequest(worker_id="w", incarnation=1, prefix_added=[b"short"])
    assert (await refused(running.stub.Heartbeat(beat))).param == "prefix_added"


async def test_heartbeats_of_unknown_workers_ask_them_to_register(running: Any, make_worker: Make) -> None:
    """Unknown id, old incarnation, and a worker that was silent for too long."""
    old = await register(running, make_worker("w"))
    new = await register(running, make_worker("w"))
    for worker_id, incarnation in (("nobody", 1), ("w", old)):
        beat = pb.HeartbeatRequest(worker_id=worker_id, incarnation=incarnation)
        error = await refused(running.stub.Heartbeat(beat))
        assert isinstance(error, NotFound)
        assert "register again" in error.message
    beat = pb.HeartbeatRequest(worker_id="w", incarnation=new)
    assert await running.stub.Heartbeat(beat) == pb.HeartbeatResponse()
    running.clock.now_s += 1001
    await running.broker.upkeep.sweep_once()
    assert isinstance(await refused(running.stub.Heartbeat(beat)), NotFound)


async def test_a_lease_is_granted_renewed_released(running: Any, make_worker: Make) -> None:
    """Fences grow, Inspect shows what is out, metrics count."""
    request = await pair(running, make_worker)
    first = (await running.stub.GrantLease(request)).lease
    second = (await running.stub.GrantLease(request)).lease
    assert second.fence > first.fence > 0
    assert (first.request_id, first.ttl_ms) == ("r", 30_000)
    ids = [first.lease_id, second.lease_id, "unknown"]
    owner: dict[str, Any] = {"owner_id": "d", "owner_incarnation": request.owner_incarnation}
    renewed = await running.stub.RenewLeases(pb.RenewLeasesRequest(**owner, lease_ids=ids))
    assert list(renewed.expired) == ["unknown"]
    books = await running.stub.Inspect(pb.BrokerInspectRequest())
    assert list(books.leases) == [first, second]
    await running.stub.ReleaseLeases(pb.ReleaseLeasesRequest(**owner, lease_ids=ids))
    books = await running.stub.Inspect(pb.BrokerInspectRequest())
    assert list(books.leases) == []
    assert running.metric("leases_granted_total", transport="grpc") == 2
    assert running.metric("pages_leased_total") == 14
    assert running.metric("leases_released_total") == 2


async def test_leases_expire_unless_renewed(running: Any, make_worker: Make) -> None:
    """After the time to live the owner is told to free the pages."""
    request = await pair(running, make_worker)
    kept = (await running.stub.GrantLease(request)).lease
    lost = (await running.stub.GrantLease(request)).lease
    owner: dict[str, Any] = {"owner_id": "d", "owner_incarnation": request.owner_incarnation}
    running.clock.now_s += 20
    await running.stub.RenewLeases(pb.RenewLeasesRequest(**owner, lease_ids=[kept.lease_id]))
    running.clock.now_s += 20
    await running.broker.upkeep.sweep_once()
    ids = [kept.lease_id, lost.lease_id]
    renewed = await running.stub.RenewLeases(pb.RenewLeasesRequest(**owner, lease_ids=ids))
    assert list(renewed.expired) == [lost.lease_id]
    assert running.metric("leases_expired_total") == 1
    assert running.metric("leases_out") == 1


@pytest.mark.parametrize("side", ["d", "p"])
async def test_a_replaced_worker_gets_no_lease(running: Any, make_worker: Make, side: str) -> None:
    """Neither as owner nor as writer, and its old leases are gone."""
    request = await pair(running, make_worker)
    lease = (await running.stub.GrantLease(request)).lease
    await register(running, make_worker(side))
    error = await refused(running.stub.GrantLease(request))
    assert isinstance(error, LeaseInvalid)
    assert "was replaced" in error.message
    renew = pb.RenewLeasesRequest(
        owner_id="d", owner_incarnation=request.owner_incarnation, lease_ids=[lease.lease_id]
    )
    assert list((await running.stub.RenewLeases(renew)).expired) == [lease.lease_id]
    assert running.metric("leases_refused_total", code="lease_invalid") == 1


async def test_leases_of_silent_unknown_or_foreign_workers_are_refused(
    running: Any, make_worker: Make
) -> None:
    """Also a lease to oneself, and one between two models."""
    request = await pair(running, make_worker)
    same = pb.GrantLeaseRequest(owner_id="d", writer_id="d")
    assert isinstance(await refused(running.stub.GrantLease(same)), InvalidRequest)
    nobody = pb.GrantLeaseRequest(owner_id="d", writer_id="nobody")
    assert isinstance(await refused(running.stub.GrantLease(nobody)), LeaseInvalid)
    foreign = await register(running, make_worker("f", model="n", page_tokens=32))
    mixed = pb.GrantLeaseRequest(
        owner_id="d",
        owner_incarnation=request.owner_incarnation,
        writer_id="f",
        writer_incarnation=foreign,
    )
    assert isinstance(await refused(running.stub.GrantLease(mixed)), Incompatible)
    running.clock.now_s += 1001
    assert isinstance(await refused(running.stub.GrantLease(request)), LeaseInvalid)


@pytest.mark.parametrize(
    ("owner", "writer", "expected"),
    [
        ({}, {}, TRANSPORT_GRPC),
        ({"transports": []}, {"transports": []}, TRANSPORT_GRPC),
        ({"transports": [1, 2, 3]}, {"transports": [1, 2, 3]}, TRANSPORT_SHARED_MEMORY),
        ({"transports": [1, 2, 3]}, {"transports": [1, 2, 3], "host_id": "other"}, TRANSPORT_NIXL),
        ({"transports": [1, 2]}, {"transports": [1, 2], "host_id": "other"}, TRANSPORT_GRPC),
        ({"transports": [2], "host_id": ""}, {"transports": [2], "host_id": ""}, TRANSPORT_GRPC),
        ({"transports": [1, 2]}, {"transports": [1, 3]}, TRANSPORT_GRPC),
    ],
)
async def test_the_transport_is_the_best_both_sides_have(
    running: Any, make_worker: Make, owner: dict[str, Any], writer: dict[str, Any], expected: int
) -> None:
    """Shared memory on one host, else NIXL, else gRPC."""
    owner_incarnation = await register(running, make_worker("d", **owner))
    writer_incarnation = await register(running, make_worker("p", **writer))
    request = pb.GrantLeaseRequest(
        owner_id="d",
        owner_incarnation=owner_incarnation,
        writer_id="p",
        writer_incarnation=writer_incarnation,
    )
    assert (await running.stub.GrantLease(request)).lease.transport == expected


async def test_inspect_shows_workers_as_they_are_now(running: Any, make_worker: Make) -> None:
    """Load and role come from heartbeats; prefix entries count once per worker; a leaver is gone."""
    first = await register(running, make_worker("a"), A, B)
    second = await register(running, make_worker("b"), A)
    beat = pb.HeartbeatRequest(
        worker_id="a",
        incarnation=first,
        role=ROLE_DECODE,
        load=Load(running=4),
        prefix_removed=[B],
    )
    await running.stub.Heartbeat(beat)
    books = await running.stub.Inspect(pb.BrokerInspectRequest())
    assert [(worker.worker_id, worker.role, worker.load.running) for worker in books.workers] == [
        ("a", ROLE_DECODE, 4),
        ("b", 1, 0),
    ]
    assert books.prefix_entries == 2
    await running.stub.Deregister(pb.DeregisterRequest(worker_id="b", incarnation=first))
    await running.stub.Deregister(pb.DeregisterRequest(worker_id="a", incarnation=first))
    books = await running.stub.Inspect(pb.BrokerInspectRequest())
    assert [(worker.worker_id, worker.incarnation) for worker in books.workers] == [("b", second)]
