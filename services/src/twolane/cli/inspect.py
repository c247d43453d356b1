"""Compares the books of the broker and of every worker and prints what does not fit.

`twolane inspect leaks` calls it; safe at any time, it changes nothing. A difference counts when two readings
show it: between them, everything that was under way has moved on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import grpc
from pydantic import Field

from twolane.core.config import ProcessConfig
from twolane.core.errors import TwolaneError
from twolane.rpc.channel import open_channel, raise_twolane_error, to_twolane_error
from twolane.rpc.tls import Tls, open_tls
from twolane.v1 import broker_pb2, worker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub
from twolane.v1.worker_pb2_grpc import WorkerStub

WorkerBooks = Mapping[str, worker_pb2.InspectResponse | TwolaneError]


class InspectConfig(ProcessConfig):
    """Flags of `twolane inspect leaks`."""

    process: ClassVar[str] = "inspect"

    broker: str = "127.0.0.1:9200"
    """host:port of the broker; of several replicas, with commas between."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt, as the processes themselves have it; unset: plain text."""
    settle_s: float = Field(default=2.0, ge=0)
    """Seconds between the two readings that must agree on a difference."""
    timeout_s: float = Field(default=10.0, gt=0)
    """How long one process may take to answer."""


def differences(broker: broker_pb2.BrokerInspectResponse, workers: WorkerBooks) -> list[str]:
    """What contradicts what, one line each; empty when all books agree.

    Args:
        broker: the broker's books.
        workers: each registered worker's books by id, or why it gave none.
    """
    found = []
    for worker_id, books in workers.items():
        if isinstance(books, TwolaneError):
            found.append(f"worker {worker_id}: gives no account: {books.message}")
        else:
            found += [f"worker {worker_id}: {line}" for line in _pages(books)]
    answered = {key: books for key, books in workers.items() if not isinstance(books, TwolaneError)}
    return found + list(_leases(broker, answered))


async def read(config: InspectConfig) -> tuple[list[str], str]:
    """One reading: the differences, and a line that says what was compared.

    Raises:
        TwolaneError: the broker gives no account.
    """
    tls = open_tls(config.tls_dir)
    async with open_channel(config.broker, tls, "broker") as channel:
        try:
            broker = await BrokerStub(channel).Inspect(
                broker_pb2.BrokerInspectRequest(), timeout=config.timeout_s
            )
        except grpc.RpcError as error:
            raise_twolane_error(error)
    accounts = await asyncio.gather(*(_account(info, config.timeout_s, tls) for info in broker.workers))
    workers = dict(zip((info.worker_id for info in broker.workers), accounts, strict=True))
    books = [each for each in accounts if not isinstance(each, TwolaneError)]
    pages, held = sum(each.total_pages for each in books), sum(each.held_pages for each in books)
    requests = sum(len(each.requests) for each in books)
    compared = (
        f"{len(workers)} workers, {len(broker.leases)} leases, {requests} requests, {held}/{pages} pages"
    )
    return differences(broker, workers), compared


async def audit(config: InspectConfig) -> int:
    """Reads once, and again if something differs; returns the exit status (1: differences that stay)."""
    first, compared = await read(config)
    if first:
        await asyncio.sleep(config.settle_s)
        second, compared = await read(config)
        first = [line for line in second if line in first]
    for line in first:
        print(line)
    print(f"{len(first)} differences between the books of {compared}")
    return 1 if first else 0


def main(argv: list[str]) -> int:
    """Prints the differences; 0: none, 1: some."""
    return asyncio.run(audit(InspectConfig.from_args(argv)))


async def _account(
    info: broker_pb2.WorkerInfo, timeout_s: float, tls: Tls | None
) -> worker_pb2.InspectResponse | TwolaneError:
    async with open_channel(info.address, tls, "worker") as channel:
        try:
            return await WorkerStub(channel).Inspect(worker_pb2.InspectRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return to_twolane_error(error)


def _pages(books: worker_pb2.InspectResponse) -> Iterator[str]:
    if books.pool_fault:
        yield f"the page pool contradicts itself: {books.pool_fault}"
    counted = books.empty_pages + books.cached_pages + books.held_pages
    if counted != books.total_pages:
        yield f"{books.total_pages} pages in all, but {counted} are empty, cached or held"
    lost = books.held_pages - books.request_pages
    if lost > 0:
        yield f"{lost} pages are held by no request"
    elif lost < 0:
        yield f"requests name {-lost} pages that nobody holds"


def _leases(
    broker: broker_pb2.BrokerInspectResponse, workers: Mapping[str, worker_pb2.InspectResponse]
) -> Iterator[str]:
    registered = {info.worker_id for info in broker.workers}
    granted = {lease.lease_id: lease for lease in broker.leases}
    owned: dict[str, tuple[str, worker_pb2.LeaseEntry]] = {}
    written: dict[str, tuple[str, worker_pb2.LeaseEntry]] = {}
    for worker_id, books in workers.items():
        for entry in books.leases:
            (owned if entry.owner else written)[entry.lease_id] = (worker_id, entry)
            if entry.request_id not in books.requests:
                yield (
                    f"worker {worker_id}: lease {entry.lease_id} is for request {entry.request_id}, "
                    "which it does not have"
                )
    for lease in granted.values():
        known = owned.get(lease.lease_id)
        if known is None and (lease.owner_id in workers or lease.owner_id not in registered):
            yield f"lease {lease.lease_id}: in the broker's books, not in those of its owner {lease.owner_id}"
        elif known is not None and known[1].fence != lease.fence:
            yield f"lease {lease.lease_id}: fence {lease.fence} at the broker, {known[1].fence} at its owner"
    for lease_id, (worker_id, _entry) in owned.items():
        if lease_id not in granted:
            yield f"lease {lease_id}: in the books of its owner {worker_id}, not in the broker's"
    for lease_id, (worker_id, entry) in written.items():
        if lease_id not in owned and (entry.peer_id in workers or entry.peer_id not in registered):
            yield f"lease {lease_id}: {worker_id} writes under it, its owner {entry.peer_id} has closed it"
