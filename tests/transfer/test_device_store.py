"""Pages on a device, with tensors in host memory in its place: what travels, where it lands, what is refused.

Device handles and streams need a device; everything around them is the same code.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.fake_device import fake_device
from twolane.core.errors import Incompatible
from twolane.transfer.device_store import DevicePeerCodec, DeviceStore, device_codecs, open_pool
from twolane.transfer.page_store import Layers, PageMemory
from twolane.transfer.transports import InlineCodec, StreamCodec, TransportCodec
from twolane.v1 import transfer_pb2 as pb

SHAPE = (8, 4, 2, 2, 4, 8)
ALL = Layers(0, 4)

POOLS: dict[bytes, torch.Tensor] = {}


def device_store(seed: int) -> DeviceStore:
    """A random pool."""
    return DeviceStore(torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)))


def peer_codec(store: DeviceStore) -> DevicePeerCodec:
    """A codec whose handles are names in this process."""

    def share(pages: torch.Tensor) -> bytes:
        name = str(pages.data_ptr()).encode()
        POOLS[name] = pages.reshape(-1)
        return name

    return DevicePeerCodec(store, share, POOLS.__getitem__)


@pytest.mark.parametrize("kind", ["inline", "peer"])
@pytest.mark.parametrize("layers", [ALL, Layers(0, 1), Layers(1, 3)])
def test_pages_arrive_bit_for_bit(kind: str, layers: Layers) -> None:
    """The layers sent of the pages named, and nothing else."""
    writer, owner = device_store(1), device_store(2)
    ours: TransportCodec = InlineCodec(writer) if kind == "inline" else peer_codec(writer)
    theirs: TransportCodec = InlineCodec(owner) if kind == "inline" else peer_codec(owner)
    expected = owner.pages.clone()
    part = slice(layers.first, layers.first + layers.count)
    expected[[7, 0, 1], part] = writer.pages[[2, 5, 6], part]
    for packed in ours.pack([2, 5, 6], [7, 0, 1], layers):
        theirs.land(packed.run)
    np.testing.assert_array_equal(owner.pages.numpy(), expected.numpy())


def test_a_stream_fills_staging_memory_first() -> None:
    """What a stream reads reaches the pool when the run is complete."""
    writer, owner = device_store(1), device_store(2)
    (packed,) = StreamCodec(writer).pack([3, 1], [0, 6], ALL)
    before = owner.pages.clone()
    target: PageMemory = owner
    (buffer,) = target.target([0, 6], ALL)
    buffer[:] = b"".join(packed.payload)
    np.testing.assert_array_equal(owner.pages.numpy(), before.numpy())
    target.landed([0, 6], ALL, [buffer])
    np.testing.assert_array_equal(owner.pages[[0, 6]].numpy(), writer.pages[[3, 1]].numpy())


@pytest.mark.parametrize("offset", [-1, 8])
def test_a_place_outside_the_pool_is_refused(offset: int) -> None:
    """Offsets come from the wire and are not trusted."""
    writer, owner = device_store(1), device_store(2)
    (packed,) = peer_codec(writer).pack([0], [0], ALL)
    packed.run.cuda.offsets[0] = 1 if offset < 0 else offset * writer.page_bytes
    with pytest.raises(Incompatible, match="past the end"):
        peer_codec(owner).land(packed.run)


def test_without_shared_device_memory_the_other_ways_remain() -> None:
    """Containers may forbid it; the worker must start all the same."""

    def forbidden(_pages: torch.Tensor) -> bytes:
        raise RuntimeError("CUDA error: operation not supported")

    ways = device_codecs(device_store(1), forbidden)
    assert set(ways) == {pb.TRANSPORT_GRPC, pb.TRANSPORT_TCP}


@pytest.mark.parametrize("shared", [b"", b"[1]", b"[0, null, 1, 0, null, 0, null, true]"])
def test_a_handle_that_is_none_is_refused(shared: bytes) -> None:
    """It comes from the wire."""
    with pytest.raises(Incompatible, match="can't be opened"):
        open_pool(shared)


def test_on_a_device_pages_move_beside_the_engine() -> None:
    """Its stream is never waited for, which would hold the event loop for a whole step."""
    with fake_device() as device, torch.inference_mode():
        store = DeviceStore(torch.zeros(SHAPE, device="cuda:0"))
        streams: list[object] = []
        original = store._columns

        def columns(layers: Layers) -> torch.Tensor:
            streams.append(device.stream)
            return original(layers)

        store._columns = columns  # type: ignore[method-assign]
        (sent,) = store.source([2, 5], Layers(1, 2))
        assert sent.nbytes == 2 * 2 * store.page_bytes // 4
        store.landed([0, 1], Layers(1, 2), store.target([0, 1], Layers(1, 2)))
        assert streams == [store._stream] * 2
        assert store._stream is not None
        assert (device.waits, device.side_waits) == (0, 3)
