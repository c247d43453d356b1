"""How the bytes of pages travel: inside the message, or read from the sender's shared memory.

The sender packs, the receiver unpacks; the broker has chosen the transport in the lease. A NIXL
transport fills the same protocol with its own descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import xxhash

from twolane.core.errors import Incompatible, LeaseInvalid
from twolane.transfer.page_store import PageBytes, PageStore, PeerSegments
from twolane.v1 import transfer_pb2 as pb

# A push is one message: small enough that landing it never holds the event loop for long.
MAX_INLINE_BYTES = 4 << 20


class TransportCodec(Protocol):
    """One way for pages to travel."""

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> Iterator[pb.PageRun]:
        """Describes pages of this worker for the peer's pages; one or more messages."""
        ...

    def unpack(self, run: pb.PageRun) -> PageBytes:
        """The bytes of a run that came in, [n_pages, page_bytes] uint8; may be a view of the peer's memory.

        Raises:
            Incompatible: the payload is of another kind or size than this worker's pages.
            LeaseInvalid: the checksum differs; nothing of it may be kept.
        """
        ...


class InlineCodec:
    """Bytes inside the message, with a checksum: works between any two hosts."""

    def __init__(self, store: PageStore, n_layers: int) -> None:
        self._store = store
        self._n_layers = n_layers

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> Iterator[pb.PageRun]:
        """See TransportCodec."""
        step = max(1, MAX_INLINE_BYTES // self._store.page_bytes)
        for start in range(0, len(source_ids), step):
            payload = self._store.pages[np.asarray(source_ids[start : start + step])].tobytes()
            yield pb.PageRun(
                page_ids=target_ids[start : start + step],
                n_layers=self._n_layers,
                inline=payload,
                checksum=xxhash.xxh3_64_intdigest(payload),
            )

    def unpack(self, run: pb.PageRun) -> PageBytes:
        """See TransportCodec."""
        expected = len(run.page_ids) * self._store.page_bytes
        if run.WhichOneof("payload") != "inline" or len(run.inline) != expected:
            got = len(run.inline)
            raise Incompatible(f"expected {expected} inline bytes for {len(run.page_ids)} pages, got {got}")
        if run.checksum and xxhash.xxh3_64_intdigest(run.inline) != run.checksum:
            raise LeaseInvalid("the checksum of the pages differs: the run was damaged on its way")
        return np.frombuffer(run.inline, dtype=np.uint8).reshape(len(run.page_ids), -1)


class SharedMemoryCodec:
    """The receiver copies from the sender's own pages; the message carries their places only."""

    def __init__(self, store: PageStore, n_layers: int) -> None:
        self._store = store
        self._n_layers = n_layers
        self._peers = PeerSegments()

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> Iterator[pb.PageRun]:
        """See TransportCodec."""
        size = self._store.page_bytes
        place = pb.SharedMemoryRange(
            segment=self._store.segment,
            offsets=[page_id * size for page_id in source_ids],
            length_bytes=size,
        )
        yield pb.PageRun(page_ids=target_ids, n_layers=self._n_layers, shared_memory=place)

    def unpack(self, run: pb.PageRun) -> PageBytes:
        """See TransportCodec."""
        place = run.shared_memory
        size = self._store.page_bytes
        if place.length_bytes != size or len(place.offsets) != len(run.page_ids):
            raise Incompatible(f"the peer's pages have {place.length_bytes} bytes, ours {size}")
        memory = self._peers.bytes_of(place.segment)
        offsets = np.fromiter(place.offsets, dtype=np.int64)
        if offsets.size and (int(offsets.max()) + size > memory.size or np.any(offsets % size)):
            raise Incompatible("the run reaches past the end of the peer's segment")
        return memory[: memory.size // size * size].reshape(-1, size)[offsets // size]


def codecs(store: PageStore, n_layers: int) -> dict[pb.Transport.ValueType, TransportCodec]:
    """The transports that work without further packages, by their number in the contract."""
    return {
        pb.TRANSPORT_GRPC: InlineCodec(store, n_layers),
        pb.TRANSPORT_SHARED_MEMORY: SharedMemoryCodec(store, n_layers),
    }
