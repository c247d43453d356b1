"""Pages in device memory: staged through pinned host memory, or copied by the receiver's device.

Used by workers whose pool lies on a CUDA device. Transports see host buffers, as with a pool in host memory;
one more copy each way runs at the bus's speed because the buffers are pinned. Pages move on a stream of their
own: on the engine's, the event loop would wait for whole steps.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from twolane.core.errors import Incompatible
from twolane.transfer.page_store import Layers, joined
from twolane.transfer.transports import (
    MAX_SHARED_BYTES,
    InlineCodec,
    Packed,
    StreamCodec,
    TransportCodec,
    check_size,
    layers_of,
    page_run,
    slices,
)
from twolane.v1 import transfer_pb2 as pb

log = logging.getLogger(__name__)


class DeviceStore:
    """A pool's pages as PageMemory, on any device.

    What a step has written must be complete, on the device too, before its pages are asked for here.

    Attributes:
        n_layers: layers of a page.
        pages: the pool's bytes [n_pages, n_layers, bytes of a layer].
    """

    def __init__(self, kv: torch.Tensor) -> None:
        """Takes the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], contiguous."""
        self.n_layers = kv.shape[1]
        self.pages = kv.view(torch.uint8).view(kv.shape[0], self.n_layers, -1)
        self._stream = torch.cuda.Stream(kv.device) if kv.is_cuda else None  # type: ignore[no-untyped-call]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.n_layers * self.pages.shape[2]

    def source(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: a pinned copy, complete on return."""
        with self.moving():
            chosen = self._columns(layers).index_select(0, self._index(page_ids))
            staged = self._staging(chosen.shape)
            staged.copy_(chosen, non_blocking=True)
        return [memoryview(staged.numpy().reshape(-1).data)]

    def target(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: pinned memory, empty yet."""
        with self.moving():
            staged = self._staging((len(page_ids), layers.count, self.pages.shape[2]))
        return [memoryview(staged.numpy().reshape(-1).data)]

    def landed(self, page_ids: Sequence[int], layers: Layers, buffers: Sequence[memoryview]) -> None:
        """See PageMemory: copies to the device, complete on return."""
        (staged,) = buffers
        with self.moving():
            data = torch.frombuffer(staged, dtype=torch.uint8).view(len(page_ids), layers.count, -1)
            moved = data.to(self.pages.device, non_blocking=True)
            self._columns(layers).index_copy_(0, self._index(page_ids), moved)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """What is done within runs on the pages' device beside the engine, and is complete behind it."""
        if self._stream is None:
            yield
            return
        # The stream's device becomes the current one: pinned memory would be tied to the first otherwise.
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                # After an error, too: its pages are given to others next.
                self._stream.synchronize()

    def _columns(self, layers: Layers) -> torch.Tensor:
        return self.pages[:, layers.first : layers.first + layers.count]

    def _index(self, page_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(page_ids), dtype=torch.int64, device=self.pages.device)

    def _staging(self, shape: Sequence[int]) -> torch.Tensor:
        # The allocator keeps pinned blocks for the next run: pinning afresh would cost more than copying.
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=self.pages.is_cuda)


def share_pool(pages: torch.Tensor) -> bytes:
    """What another process of the host needs to open a device pool."""
    storage: Any = pages.untyped_storage()
    device, handle, size, offset, counter, counter_offset, event, event_sync = storage._share_cuda_()
    parts = [device, handle.hex(), size, offset, counter.hex(), counter_offset, event.hex(), event_sync]
    return json.dumps(parts).encode()


def open_pool(shared: bytes) -> torch.Tensor:
    """The bytes of a peer's device pool, one-dimensional, mapped into the current device's memory.

    Raises:
        Incompatible: it can't be opened from here.
    """
    try:
        # The peer's number of its device means nothing here: each process may see other ones.
        _, handle, size, offset, counter, counter_offset, event, event_sync = json.loads(shared)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        storage: Any = torch.UntypedStorage._new_shared_cuda(
            torch.cuda.current_device(),
            bytes.fromhex(handle),
            size,
            offset,
            bytes.fromhex(counter),
            counter_offset,
            bytes.fromhex(event),
            event_sync,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise Incompatible(f"the peer's device memory can't be opened here: {error}") from error
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class DevicePeerCodec:
    """The receiver's device copies from the sender's: over NVLink or the bus, never through the host.

    Args:
        store: this worker's pages.
        share: makes the handle of the pool; another one in tests.
        open_: opens a peer's.
    """

    def __init__(
        self,
        store: DeviceStore,
        share: Callable[[torch.Tensor], bytes] = share_pool,
        open_: Callable[[bytes], torch.Tensor] = open_pool,
    ) -> None:
        self._store = store
        self._handle = share(store.pages)
        self._open = open_
        self._peers: dict[bytes, torch.Tensor] = {}

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """See TransportCodec; without checksums: the bytes never leave the devices."""
        store = self._store
        layer_bytes = store.pages.shape[2]
        for sources, targets in slices(store, source_ids, target_ids, layers, MAX_SHARED_BYTES):
            run = page_run(targets, layers, 0)
            run.cuda.handle = self._handle
            start = layers.first * layer_bytes
            run.cuda.offsets.extend(each * store.page_bytes + start for each in sources)
            run.cuda.length_bytes = layers.count * layer_bytes
            yield Packed(run)

    def land(self, run: pb.PageRun) -> None:
        """See TransportCodec; complete on return, so that the sender may let go of its pages."""
        store, layers, place = self._store, layers_of(self._store, run), run.cuda
        layer_bytes, size = store.pages.shape[2], store.page_bytes
        got, due = place.length_bytes * len(place.offsets), len(run.page_ids) * layers.count * layer_bytes
        check_size(run, "cuda", got, due)
        with store.moving():
            theirs = self._peer(place.handle)
        start = layers.first * layer_bytes
        sources = [(offset - start) // size for offset in place.offsets]
        for offset, source in zip(place.offsets, sources, strict=True):
            if source < 0 or source * size + start != offset or (source + 1) * size > theirs.numel():
                raise Incompatible("the run reaches past the end of the peer's pool")
        pool = theirs[: theirs.numel() // size * size].view(-1, store.n_layers, layer_bytes)
        part = slice(layers.first, layers.first + layers.count)
        with store.moving():
            for source, target, n in joined(sources, list(run.page_ids)):
                store.pages[target : target + n, part].copy_(
                    pool[source : source + n, part], non_blocking=True
                )

    def _peer(self, handle: bytes) -> torch.Tensor:
        if handle not in self._peers:
            self._peers[handle] = self._open(handle)
        return self._peers[handle]


def device_codecs(
    store: DeviceStore, share: Callable[[torch.Tensor], bytes] = share_pool
) -> dict[pb.Transport.ValueType, TransportCodec]:
    """The transports of a worker whose pages lie on a device; one that can't share memory does without."""
    found: dict[pb.Transport.ValueType, TransportCodec] = {
        pb.TRANSPORT_GRPC: InlineCodec(store),
        pb.TRANSPORT_TCP: StreamCodec(store),
    }
    try:
        found[pb.TRANSPORT_CUDA_PEER] = DevicePeerCodec(store, share)
    except RuntimeError as error:
        log.warning("pages go through the host: the device's memory can't be shared (%s)", error)
    return found
