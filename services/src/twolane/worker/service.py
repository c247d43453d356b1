"""The gRPC services of a worker: sessions of routers, pages of peers, books for auditors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from twolane.core.errors import DeadlineExceeded, Incompatible, InvalidRequest, TwolaneError
from twolane.core.model import ModelFingerprint
from twolane.engine.pages import PagePool
from twolane.rpc.channel import check_remaining_s
from twolane.rpc.convert import fingerprint_from_proto, fingerprint_to_proto
from twolane.rpc.words import lane_from_proto, role_from_proto, role_to_proto
from twolane.transfer.landing import Landing
from twolane.v1 import transfer_pb2, transfer_pb2_grpc, worker_pb2, worker_pb2_grpc
from twolane.worker.assignment import Assignment
from twolane.worker.membership import Identity
from twolane.worker.request import Outbox
from twolane.worker.table import RequestTable

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

LOAD_INTERVAL_S = 0.1
HELLO_TIMEOUT_S = 10.0
DRAIN_DEFAULT_S = 600.0


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """twolane.v1.Worker."""

    def __init__(
        self,
        table: RequestTable,
        identity: Identity,
        fingerprint: ModelFingerprint,
        assignment: Assignment,
        load: Callable[[], worker_pb2.Load],
        inspect: Callable[[], worker_pb2.InspectResponse],
    ) -> None:
        self._table = table
        self._identity = identity
        self._fingerprint = fingerprint
        self._assignment = assignment
        self._load = load
        self._inspect = inspect

    async def Session(
        self, request_iterator: AsyncIterator[worker_pb2.RouterMessage], context: Context
    ) -> AsyncIterator[worker_pb2.WorkerMessage]:
        """One router's stream; when it ends, so do its requests."""
        await self._greet(request_iterator)
        outgoing: asyncio.Queue[worker_pb2.WorkerMessage | None] = asyncio.Queue()
        outbox = Outbox(outgoing.put_nowait)
        welcome = worker_pb2.Welcome(
            worker_id=self._identity.worker_id,
            incarnation=self._identity.incarnation,
            fingerprint=fingerprint_to_proto(self._fingerprint),
        )
        yield worker_pb2.WorkerMessage(welcome=welcome)
        self._table.open_session(outbox)
        reports = asyncio.create_task(self._report_load(outbox), name="load-reports")
        reader = asyncio.create_task(self._read(request_iterator, outbox), name="session-reader")
        reader.add_done_callback(lambda _task: outgoing.put_nowait(None))
        try:
            while (message := await outgoing.get()) is not None:
                yield message
            await reader
        finally:
            reader.cancel()
            reports.cancel()
            self._table.end_session(outbox)

    async def Drain(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:
        """Stops taking requests and waits for the running ones."""
        remaining = await drain(self._table, check_remaining_s(context, DRAIN_DEFAULT_S))
        return worker_pb2.DrainResponse(remaining=remaining)

    async def Assign(self, request: worker_pb2.AssignRequest, context: Context) -> worker_pb2.AssignResponse:
        """Another role or lane from now on."""
        role = role_from_proto(request.role)
        if role is None:
            raise InvalidRequest("role is unset; allowed: prefill, decode, mixed", param="role")
        self._assignment.change(role, lane_from_proto(request.lane))
        return worker_pb2.AssignResponse()

    async def Inspect(
        self, request: worker_pb2.InspectRequest, context: Context
    ) -> worker_pb2.InspectResponse:
        """The books."""
        return self._inspect()

    async def _greet(self, messages: AsyncIterator[worker_pb2.RouterMessage]) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(messages), None)
        except TimeoutError:
            raise DeadlineExceeded(f"no Hello came within {HELLO_TIMEOUT_S:g} s") from None
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("a session begins with Hello", param="hello")
        ours = self._fingerprint.tokenizer_sha256
        if first.hello.tokenizer_sha256 != ours:
            raise Incompatible(
                f"router {first.hello.router_id} encodes with tokenizer {first.hello.tokenizer_sha256[:12]}, "
                f"this worker's model has {ours[:12]}: serve both from the same model folder"
            )

    async def _read(self, messages: AsyncIterator[worker_pb2.RouterMessage], outbox: Outbox) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "submit":
                    self._submit(outbox, message.submit)
                case "cancel":
                    if (request := self._table.find(outbox, message.cancel.stream_id)) is not None:
                        self._table.cancel(request)
                case other:
                    raise InvalidRequest(f"unexpected {other} in a session")

    def _submit(self, outbox: Outbox, submit: worker_pb2.Submit) -> None:
        try:
            self._table.submit(outbox, submit)
        except TwolaneError as error:
            outbox.refuse(submit.stream_id, error)

    async def _report_load(self, outbox: Outbox) -> None:
        sent: worker_pb2.Load | None = None
        twice = False
        while True:
            load = self._load()
            # Once more unchanged: a router counts what it sent shortly before a report beside that report.
            if load != sent or not twice:
                outbox.send_load(load)
            sent, twice = load, load == sent
            await asyncio.sleep(LOAD_INTERVAL_S)


class PageTransferService(transfer_pb2_grpc.PageTransferServicer):
    """twolane.v1.PageTransfer."""

    def __init__(
        self,
        offered: Callable[[transfer_pb2.PageOffer], None],
        wanted: Callable[[transfer_pb2.PagesWanted], None],
        landing: Landing,
        fingerprint: ModelFingerprint,
    ) -> None:
        self._offered = offered
        self._wanted = wanted
        self._landing = landing
        self._fingerprint = fingerprint

    async def Want(self, request: transfer_pb2.PagesWanted, context: Context) -> transfer_pb2.PagesWantedAck:
        """A prefill worker has begun prompts whose pages are to come here."""
        self._wanted(request)
        return transfer_pb2.PagesWantedAck()

    async def Offer(self, request: transfer_pb2.PageOffer, context: Context) -> transfer_pb2.PageOfferAck:
        """A decode worker's pages are ours to fill.

        Raises:
            Incompatible: it runs another model or lays out pages differently. The broker refuses such pairs
                first; this is for leases that began without a broker.
        """
        if request.HasField("fingerprint"):
            theirs = fingerprint_from_proto(request.fingerprint)
            if differences := self._fingerprint.differences(theirs):
                owner_id = request.lease.owner_id
                raise Incompatible(f"pages of {owner_id} don't fit ours: {', '.join(differences)}")
        self._offered(request)
        return transfer_pb2.PageOfferAck()

    async def Push(
        self, request_iterator: AsyncIterator[transfer_pb2.PagePush], context: Context
    ) -> AsyncIterator[transfer_pb2.PagePushAck]:
        """A prefill worker's pages."""
        async for push in request_iterator:
            yield await self._landing.take(push)


class Books:
    """What a worker can be asked about itself."""

    def __init__(
        self, pool: PagePool, table: RequestTable, identity: Identity, assignment: Assignment
    ) -> None:
        self._pool = pool
        self._table = table
        self._identity = identity
        self._assignment = assignment

    def inspect(self, leases: Sequence[worker_pb2.LeaseEntry]) -> worker_pb2.InspectResponse:
        """The books now; `leases` are those of landing and sender."""
        return worker_pb2.InspectResponse(
            worker_id=self._identity.worker_id,
            incarnation=self._identity.incarnation,
            role=role_to_proto(self._assignment.role),
            total_pages=self._pool.n_pages,
            empty_pages=self._pool.empty,
            cached_pages=self._pool.cached,
            held_pages=self._pool.held,
            requests=self._table.states(),
            lease_ids=[lease.lease_id for lease in leases],
            leases=leases,
            request_pages=self._table.pages(),
            pool_fault=self._pool_fault(),
        )

    def _pool_fault(self) -> str:
        try:
            self._pool.check()
        except AssertionError as fault:
            return str(fault)
        return ""


async def drain(table: RequestTable, timeout_s: float) -> int:
    """Takes nothing new and waits until all requests have ended; returns how many have not in time."""
    table.draining = True
    try:
        async with asyncio.timeout(timeout_s):
            await table.empty.wait()
    except TimeoutError:
        log.warning("%d requests still run at the end of the drain", len(table))
    return len(table)
