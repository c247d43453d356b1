"""How the bytes of pages travel: inside the message, behind it on a stream, or read from the sender's memory.

The sender packs, the receiver lands; the broker has chosen the transport in the lease. Every way keeps one
protocol, so that nobody else knows which it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import xxhash

from twolane.core.errors import Incompatible, LeaseInvalid
from twolane.transfer.page_store import (
    Layers,
    PageBytes,
    PageMemory,
    PageStore,
    PeerSegments,
    joined,
)
from twolane.v1 import transfer_pb2 as pb

# A push is one message: small enough that landing it never holds the event loop for long.
MAX_INLINE_BYTES = 1 << 20
MAX_STREAM_BYTES = 32 << 20
MAX_SHARED_BYTES = 32 << 20
# Every so many runs that don't cross a network carry a checksum.
SAMPLED = 64


@dataclass(frozen=True, slots=True)
class Packed:
    """A run, and the bytes that follow it on a stream."""

    run: pb.PageRun
    payload: Sequence[memoryview] = ()


class TransportCodec(Protocol):
    """One way for pages to travel."""

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """Describes pages of this worker for the peer's pages; one or more messages."""
        ...

    def land(self, run: pb.PageRun) -> None:
        """Puts the bytes of a run that came in into this worker's pages, which the caller has checked.

        Raises:
            Incompatible: the payload is of another kind or size than this worker's pages.
            LeaseInvalid: the checksum differs; the pages hold nothing that may be used.
        """
        ...


@runtime_checkable
class FetchingCodec(TransportCodec, Protocol):
    """A way whose bytes take time to come: they are fetched, and put into pages if these are still open."""

    async def fetch(self, run: pb.PageRun) -> PageBytes:
        """The bytes of a run, one after the other.

        Raises:
            Incompatible: they are of another size than this worker's pages.
            WorkerLost: the peer can't be read.
        """
        ...

    def put(self, run: pb.PageRun, data: PageBytes) -> None:
        """Puts fetched bytes into pages. Raises LeaseInvalid when the checksum differs."""
        ...


class SampledChecksum:
    """Checksums for bytes that something else keeps safe already: the first run's and every 64th's."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def of(self, store: PageMemory, page_ids: Sequence[int], layers: Layers) -> int:
        """The checksum for a run of these pages, or 0."""
        return digest(store.source(page_ids, layers)) if next(self._count) % SAMPLED == 0 else 0


class InlineCodec:
    """Bytes inside the message, with a checksum: works between any two hosts."""

    def __init__(self, store: PageMemory) -> None:
        self._store = store

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """See TransportCodec."""
        for sources, targets in slices(self._store, source_ids, target_ids, layers, MAX_INLINE_BYTES):
            payload = b"".join(self._store.source(sources, layers))
            run = page_run(targets, layers, xxhash.xxh3_64_intdigest(payload))
            run.inline = payload
            yield Packed(run)

    def land(self, run: pb.PageRun) -> None:
        """See TransportCodec."""
        layers, payload = layers_of(self._store, run), memoryview(run.inline)
        check_size(run, "inline", len(payload), run_bytes(self._store, run))
        if run.checksum and xxhash.xxh3_64_intdigest(payload) != run.checksum:
            raise damaged()
        buffers, at = self._store.target(run.page_ids, layers), 0
        for buffer in buffers:
            buffer[:] = payload[at : at + len(buffer)]
            at += len(buffer)
        self._store.landed(run.page_ids, layers, buffers)


class StreamCodec:
    """Bytes behind the message on a plain TCP stream; `stream_server.py` receives them into the pages."""

    def __init__(self, store: PageMemory) -> None:
        self._store = store

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """See TransportCodec."""
        for sources, targets in slices(self._store, source_ids, target_ids, layers, MAX_STREAM_BYTES):
            payload = self._store.source(sources, layers)
            # Its checksum follows the bytes: see stream_server.py.
            run = page_run(targets, layers, 0)
            run.stream_bytes = sum(len(part) for part in payload)
            yield Packed(run, payload)

    def land(self, run: pb.PageRun) -> None:
        """See TransportCodec: a run that came by another way than a stream has no bytes."""
        raise Incompatible("a run of stream bytes came without a stream")


class SharedMemoryCodec:
    """The receiver copies from the sender's own pages; the message carries their places only."""

    def __init__(self, store: PageStore) -> None:
        self._store = store
        self._peers = PeerSegments()
        self._checksum = SampledChecksum()

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """See TransportCodec."""
        store, columns = self._store, self._store.columns(layers)
        for sources, targets in slices(store, source_ids, target_ids, layers, MAX_SHARED_BYTES):
            run = page_run(targets, layers, self._checksum.of(store, sources, layers))
            run.shared_memory.segment = store.segment
            run.shared_memory.offsets.extend(each * store.page_bytes + columns.start for each in sources)
            run.shared_memory.length_bytes = columns.stop - columns.start
            yield Packed(run)

    def land(self, run: pb.PageRun) -> None:
        """See TransportCodec."""
        store, layers, place = self._store, layers_of(self._store, run), run.shared_memory
        columns, size = store.columns(layers), store.page_bytes
        length = columns.stop - columns.start
        check_size(run, "shared_memory", place.length_bytes * len(place.offsets), length * len(run.page_ids))
        memory = self._peers.bytes_of(place.segment)
        offsets = np.fromiter(place.offsets, dtype=np.int64) - columns.start
        outside = offsets.size and int(offsets.max()) + size > memory.size
        if outside or np.any(offsets % size) or np.any(offsets < 0):
            raise Incompatible("the run reaches past the end of the peer's segment")
        theirs = memory[: memory.size // size * size].reshape(-1, size)
        sources = (offsets // size).tolist()
        for source, target, n in joined(sources, list(run.page_ids)):
            store.pages[target : target + n, columns] = theirs[source : source + n, columns]
        if run.checksum and digest(store.source(run.page_ids, layers)) != run.checksum:
            raise damaged()


def slices(
    store: PageMemory, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers, limit_bytes: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Cuts a run of pages into runs of at most `limit_bytes`, one page at least."""
    step = max(1, limit_bytes // (store.page_bytes // store.n_layers * layers.count))
    for start in range(0, len(source_ids), step):
        yield source_ids[start : start + step], target_ids[start : start + step]


def page_run(target_ids: Sequence[int], layers: Layers, checksum: int) -> pb.PageRun:
    """A run without its payload."""
    return pb.PageRun(page_ids=target_ids, first_layer=layers.first, n_layers=layers.count, checksum=checksum)


def layers_of(store: PageMemory, run: pb.PageRun) -> Layers:
    """The layers of a run that came in.

    Raises:
        Incompatible: this worker's pages have no such layers.
    """
    if run.n_layers == 0 or run.first_layer + run.n_layers > store.n_layers:
        last = run.first_layer + run.n_layers
        raise Incompatible(f"the run is for layers {run.first_layer} to {last} of {store.n_layers}")
    return Layers(run.first_layer, run.n_layers)


def run_bytes(store: PageMemory, run: pb.PageRun) -> int:
    """Bytes that a run must bring."""
    return len(run.page_ids) * (store.page_bytes // store.n_layers) * run.n_layers


def check_size(run: pb.PageRun, payload: str, got: int, expected: int) -> None:
    """Raises Incompatible when a run's payload is of another kind or size."""
    if run.WhichOneof("payload") != payload or got != expected:
        kind = run.WhichOneof("payload")
        raise Incompatible(
            f"expected {expected} bytes by {payload} for {len(run.page_ids)} pages, got {got} by {kind}"
        )


def digest(parts: Iterable[memoryview]) -> int:
    """XXH3-64 over parts as if they were one."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()


def damaged() -> LeaseInvalid:
    """The error for bytes that are not what their sender had."""
    return LeaseInvalid("the checksum of the pages differs: the run was damaged on its way")


def codecs(store: PageStore) -> dict[pb.Transport.ValueType, TransportCodec]:
    """The transports that work without further packages, by their number in the contract."""
    return {
        pb.TRANSPORT_GRPC: InlineCodec(store),
        pb.TRANSPORT_TCP: StreamCodec(store),
        pb.TRANSPORT_SHARED_MEMORY: SharedMemoryCodec(store),
    }
