"""What goes into the broker's state and what comes out; shared by both adapters.

Workers and leases are the messages of proto/ treated as values: adapters copy them on the way in
and out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message

from twolane.core.errors import LeaseInvalid
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import Lease, Transport

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Registration:
    """Outcome of a registration.

    Attributes:
        incarnation: the worker's number from now on; 0 when it was refused.
        conflict: a living worker of the same model with another fingerprint, when refused.
    """

    incarnation: int
    conflict: WorkerInfo | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life.

    Attributes:
        worker_id: who.
        incarnation: as given at registration.
        status: role, lane, load and draining; other fields are ignored.
        added: names of pages that entered its prefix cache.
        removed: names of pages that left it.
    """

    worker_id: str
    incarnation: int
    status: WorkerInfo
    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A lease to be granted: whose pages, who writes, for which request, by which transport."""

    request_id: str
    owner_id: str
    owner_incarnation: int
    writer_id: str
    writer_incarnation: int
    transport: Transport.ValueType


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the feed of changes.

    Attributes:
        generation: names one life of the store; another one means that its data were lost.
        sequence: number of the last change seen; changes are numbered without gaps.
        cursor: the adapter's own mark of the same place.
    """

    generation: str
    sequence: int
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one worker.

    Attributes:
        worker_id: whose.
        worker: what it is now; None: it is gone.
        prefixes: its whole prefix cache, when it joined; None: `added` and `removed` apply.
        added: names that entered its prefix cache.
        removed: names that left it.
    """

    worker_id: str
    worker: WorkerInfo | None
    prefixes: frozenset[bytes] | None = None
    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in order, and the place after the last of them."""

    items: tuple[Change, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All workers and their prefix caches; every change after `position` comes on top.

    A change before the position may be included already: applying changes twice does no harm.
    """

    position: Position
    workers: dict[str, WorkerInfo] = field(default_factory=dict)
    prefixes: dict[str, frozenset[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed, and how many leases are out after it."""

    expired_leases: tuple[str, ...]
    gone_workers: tuple[str, ...]
    leases_out: int


def split_worker(worker: WorkerInfo) -> tuple[WorkerInfo, WorkerInfo]:
    """The part fixed at registration and the part that heartbeats replace; merged they are the whole."""
    fixed = copy_of(worker)
    for name in ("role", "lane", "load", "draining"):
        fixed.ClearField(name)
    return fixed, status_of(worker)


def status_of(worker: WorkerInfo) -> WorkerInfo:
    """A message with role, lane, load and draining alone."""
    status = WorkerInfo(role=worker.role, lane=worker.lane, draining=worker.draining)
    status.load.CopyFrom(worker.load)
    return status


def joining_worker(worker: WorkerInfo) -> WorkerInfo:
    """A copy as it stands at registration: idle, not draining, without an incarnation yet."""
    copy = copy_of(worker)
    for name in ("incarnation", "load", "draining"):
        copy.ClearField(name)
    copy.load.SetInParent()
    return copy


def lease_of(request: LeaseRequest, ttl_s: float) -> Lease:
    """The lease asked for, without the id and the fence that the store gives it."""
    return Lease(
        request_id=request.request_id,
        owner_id=request.owner_id,
        owner_incarnation=request.owner_incarnation,
        writer_id=request.writer_id,
        writer_incarnation=request.writer_incarnation,
        ttl_ms=round(ttl_s * 1000),
        transport=request.transport,
    )


def sides_of(lease: Lease) -> tuple[tuple[str, str, int], tuple[str, str, int]]:
    """Owner and writer of a lease: the part's name, the worker's id, its incarnation."""
    return (
        ("owner", lease.owner_id, lease.owner_incarnation),
        ("writer", lease.writer_id, lease.writer_incarnation),
    )


def lease_id_of(fence: int) -> str:
    """The id of the lease granted under a fence."""
    return f"lease-{fence}"


def copy_of(message: AnyMessage) -> AnyMessage:
    """A copy that shares nothing."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def replaced(part: str, worker_id: str, asked: int, actual: int) -> LeaseInvalid:
    """The error for a lease between workers of which one is not who the caller thinks."""
    if not actual:
        return LeaseInvalid(f"the {part} {worker_id!r} is not registered or went silent", param=f"{part}_id")
    return LeaseInvalid(
        f"the {part} {worker_id!r} has incarnation {actual}, not {asked}: it was replaced",
        param=f"{part}_incarnation",
    )
