"""twolane.v1.Broker: who is there, who has which prefix, who may write where.

Workers and routers call it. The state is asked for every answer, so any replica can give it; only
Watch answers from this process's copy.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc.aio

from twolane.broker.config import BrokerConfig
from twolane.broker.metrics import BrokerMetrics
from twolane.broker.transport import pick_transport
from twolane.broker.upkeep import Upkeep
from twolane.core.errors import Incompatible, InvalidRequest, LeaseInvalid, NotFound, TwolaneError
from twolane.core.prefix import HASH_BYTES
from twolane.rpc.convert import fingerprint_from_proto
from twolane.rpc.words import lane_from_proto, role_from_proto
from twolane.state.contract import BrokerState
from twolane.state.records import Heartbeat, LeaseRequest
from twolane.telemetry.logs import request_id_var
from twolane.v1 import broker_pb2 as pb
from twolane.v1.broker_pb2_grpc import BrokerServicer
from twolane.v1.transfer_pb2 import Lease

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class BrokerService(BrokerServicer):
    """The servicer; errors are raised as TwolaneError and mapped by RpcServer."""

    def __init__(
        self, config: BrokerConfig, state: BrokerState, upkeep: Upkeep, metrics: BrokerMetrics
    ) -> None:
        self._config = config
        self._state = state
        self._upkeep = upkeep
        self._metrics = metrics

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:
        """See broker.proto.

        Raises:
            InvalidRequest: a field that others rely on is missing or malformed.
            Incompatible: living workers of the model have another fingerprint; each difference is named.
        """
        worker = request.worker
        _check_worker(worker)
        _check_hashes(request.prefix_hashes, "prefix_hashes")
        outcome = await self._state.register(worker, request.prefix_hashes, self._config.worker_ttl_s)
        if outcome.conflict is not None:
            self._metrics.registrations.labels("incompatible").inc()
            raise _incompatible(worker, outcome.conflict)
        self._metrics.registrations.labels("accepted").inc()
        log.info(
            "worker registered",
            extra={
                "worker_id": worker.worker_id,
                "incarnation": outcome.incarnation,
                "address": worker.address,
                "model": worker.fingerprint.model,
            },
        )
        interval_ms = round(self._config.heartbeat_interval_s * 1000)
        return pb.RegisterResponse(incarnation=outcome.incarnation, heartbeat_interval_ms=interval_ms)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        """See broker.proto.

        Raises:
            NotFound: no such living incarnation; the worker must register again.
        """
        _check_hashes(request.prefix_added, "prefix_added")
        _check_hashes(request.prefix_removed, "prefix_removed")
        role_from_proto(request.role)
        lane_from_proto(request.lane)
        status = pb.WorkerInfo(
            role=request.role, lane=request.lane, load=request.load, draining=request.draining
        )
        beat = Heartbeat(
            request.worker_id,
            request.incarnation,
            status,
            tuple(request.prefix_added),
            tuple(request.prefix_removed),
        )
        if not await self._state.heartbeat(beat, self._config.worker_ttl_s):
            raise NotFound(
                f"worker {request.worker_id!r} with incarnation {request.incarnation} is not registered; "
                "register again",
                param="worker_id",
            )
        return pb.HeartbeatResponse()

    async def Deregister(self, request: pb.DeregisterRequest, context: Context) -> pb.DeregisterResponse:
        """See broker.proto; an unknown worker or an old incarnation is ignored."""
        if await self._state.deregister(request.worker_id, request.incarnation):
            log.info("worker left", extra={"worker_id": request.worker_id})
        return pb.DeregisterResponse()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.ClusterEvent]:
        """See broker.proto; a watcher that reads too slowly gets a new snapshot in place of changes.

        Raises:
            Draining: the broker stops.
        """
        await self._upkeep.settled.wait()
        log.info("watch begins", extra={"watcher_id": request.watcher_id, "model": request.model})
        with self._upkeep.watchers.follow(request.model) as watcher:
            while True:
                for event in await watcher.next():
                    yield event

    async def GrantLease(self, request: pb.GrantLeaseRequest, context: Context) -> pb.GrantLeaseResponse:
        """See broker.proto.

        Raises:
            InvalidRequest: owner and writer are one worker.
            LeaseInvalid: one side does not live under the incarnation given.
            Incompatible: the two sides run different models.
        """
        request_id_var.set(request.request_id)
        try:
            lease = await self._grant(request)
        except TwolaneError as error:
            self._metrics.leases_refused.labels(error.code).inc()
            raise
        self._metrics.granted(lease.transport, request.n_pages)
        return pb.GrantLeaseResponse(lease=lease)

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Context) -> pb.RenewLeasesResponse:
        """See broker.proto.

        Raises:
            InvalidRequest: a lease given in full is not the caller's own.
        """
        for lease in request.leases:
            if (lease.owner_id, lease.owner_incarnation) != (request.owner_id, request.owner_incarnation):
                raise InvalidRequest(f"lease {lease.lease_id} is not the caller's", param="leases")
        gone = await self._state.renew_leases(
            request.owner_id, request.owner_incarnation, request.lease_ids, self._config.lease_ttl_s
        )
        in_full = {lease.lease_id: lease for lease in request.leases}
        expired = [lease_id for lease_id in gone if not await self._goes_on(in_full.get(lease_id))]
        return pb.RenewLeasesResponse(expired=expired)

    async def ReleaseLeases(
        self, request: pb.ReleaseLeasesRequest, context: Context
    ) -> pb.ReleaseLeasesResponse:
        """See broker.proto."""
        released = await self._state.release_leases(
            request.owner_id, request.owner_incarnation, request.lease_ids
        )
        self._metrics.leases_released.inc(released)
        return pb.ReleaseLeasesResponse()

    async def Inspect(self, request: pb.BrokerInspectRequest, context: Context) -> pb.BrokerInspectResponse:
        """See broker.proto; read from the state, not from this process's copy."""
        return pb.BrokerInspectResponse(
            workers=await self._state.workers(),
            leases=await self._state.leases(),
            prefix_entries=await self._state.prefix_entries(),
        )

    async def _goes_on(self, lease: Lease | None) -> bool:
        """Takes an unknown lease into the books; False when it must end. One whose worker has yet to come
        back goes on meanwhile."""
        if lease is None:
            return False
        try:
            adopted = await self._state.adopt_lease(lease, self._config.lease_ttl_s)
        except LeaseInvalid as error:
            log.warning("lease ends: %s", error.message, extra={"lease_id": lease.lease_id})
            return False
        if adopted:
            log.info("lease adopted", extra={"lease_id": lease.lease_id, "request_id": lease.request_id})
        return True

    async def _grant(self, request: pb.GrantLeaseRequest) -> Lease:
        owner_id, writer_id = request.owner_id, request.writer_id
        if owner_id == writer_id:
            raise InvalidRequest(f"owner and writer are both {owner_id!r}: no transfer", param="writer_id")
        found = await self._state.find_workers([owner_id, writer_id])
        for part, worker_id in (("owner", owner_id), ("writer", writer_id)):
            if worker_id not in found:
                raise LeaseInvalid(
                    f"the {part} {worker_id!r} is not registered or went silent", param=f"{part}_id"
                )
        owner, writer = found[owner_id], found[writer_id]
        if owner.fingerprint != writer.fingerprint:
            raise _incompatible(owner, writer)
        wanted = LeaseRequest(
            request_id=request.request_id,
            owner_id=owner_id,
            owner_incarnation=request.owner_incarnation,
            writer_id=writer_id,
            writer_incarnation=request.writer_incarnation,
            transport=pick_transport(owner, writer),
        )
        return await self._state.grant_lease(wanted, self._config.lease_ttl_s)


def _incompatible(worker: pb.WorkerInfo, other: pb.WorkerInfo) -> Incompatible:
    mine, theirs = fingerprint_from_proto(worker.fingerprint), fingerprint_from_proto(other.fingerprint)
    differences = ", ".join(mine.differences(theirs))
    return Incompatible(
        f"worker {worker.worker_id!r} differs from {other.worker_id!r}: {differences}; "
        "give both the same model files and settings, or another model name",
        param="fingerprint",
    )


def _check_worker(worker: pb.WorkerInfo) -> None:
    for name, value in (
        ("worker_id", worker.worker_id),
        ("address", worker.address),
        ("fingerprint.model", worker.fingerprint.model),
        ("role", role_from_proto(worker.role)),
    ):
        if not value:
            raise InvalidRequest(f"worker.{name} is empty", param=f"worker.{name}")
    lane_from_proto(worker.lane)


def _check_hashes(hashes: Iterable[bytes], param: str) -> None:
    for name in hashes:
        if len(name) != HASH_BYTES:
            raise InvalidRequest(f"{param}: a hash has {len(name)} bytes, not {HASH_BYTES}", param=param)
