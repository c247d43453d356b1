"""Pages must arrive bit for bit by every transport, between processes, or be refused whole."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.core.errors import Incompatible, LeaseInvalid
from twolane.transfer.page_store import Layers, PageStore, PeerSegments
from twolane.transfer.transports import (
    MAX_INLINE_BYTES,
    SAMPLED,
    InlineCodec,
    SharedMemoryCodec,
    TransportCodec,
)
from twolane.v1 import transfer_pb2 as pb

N_PAGES, PAGE_BYTES = 8, 96


def filled_store(seed: int, n_pages: int = N_PAGES, page_bytes: int = PAGE_BYTES) -> PageStore:
    """A store of random bytes."""
    store = PageStore()
    store.allocate(n_pages * page_bytes)
    store.divide(n_pages)
    store.pages[:] = np.random.default_rng(seed).integers(0, 256, size=store.pages.shape, dtype=np.uint8)
    return store


ALL = Layers(0, 1)


def codec(kind: str, store: PageStore) -> TransportCodec:
    """A transport by name."""
    return InlineCodec(store) if kind == "inline" else SharedMemoryCodec(store)


@pytest.mark.parametrize("kind", ["inline", "shared_memory"])
@given(
    source_ids=st.lists(st.integers(0, N_PAGES - 1), min_size=1, max_size=N_PAGES, unique=True),
    target_ids=st.permutations(range(N_PAGES)),
)
def test_pages_arrive_bit_for_bit(kind: str, source_ids: list[int], target_ids: list[int]) -> None:
    """Each page lands where it belongs, and no other page changes."""
    writer, owner = filled_store(1), filled_store(2)
    target_ids = target_ids[: len(source_ids)]
    expected = owner.pages.copy()
    expected[target_ids] = writer.pages[source_ids]
    for packed in codec(kind, writer).pack(source_ids, target_ids, ALL):
        codec(kind, owner).land(packed.run)
    np.testing.assert_array_equal(owner.pages, expected)


@pytest.mark.parametrize("kind", ["inline", "shared_memory"])
@given(first=st.integers(0, 3), count=st.integers(1, 4))
def test_layers_of_pages_arrive_alone(kind: str, first: int, count: int) -> None:
    """A run for some layers leaves the others as they were; one past the last layer is refused."""
    writer, owner = filled_store(1), filled_store(2)
    for store in (writer, owner):
        store.divide(N_PAGES, n_layers=4)
    (packed,) = codec(kind, writer).pack([3, 4, 1], [0, 1, 7], Layers(first, min(count, 4 - first)))
    packed.run.n_layers = count
    if first + count > 4:
        with pytest.raises(Incompatible, match="layers"):
            codec(kind, owner).land(packed.run)
        return
    expected = owner.pages.copy().reshape(N_PAGES, 4, -1)
    expected[[0, 1, 7], first : first + count] = writer.pages.reshape(N_PAGES, 4, -1)[
        [3, 4, 1], first : first + count
    ]
    codec(kind, owner).land(packed.run)
    np.testing.assert_array_equal(owner.pages.reshape(N_PAGES, 4, -1), expected)


def test_inline_runs_stay_below_the_message_bound() -> None:
    """A long prompt is cut into messages that a server accepts."""
    store = filled_store(3, n_pages=6, page_bytes=MAX_INLINE_BYTES // 2)
    runs = [each.run for each in InlineCodec(store).pack(list(range(6)), list(range(6)), ALL)]
    assert len(runs) == 3
    assert all(len(run.inline) <= MAX_INLINE_BYTES for run in runs)


def test_a_damaged_run_is_refused() -> None:
    """One flipped bit fails the checksum, before a page is touched."""
    store = filled_store(4)
    (packed,) = InlineCodec(store).pack([0], [1], ALL)
    before = store.pages.copy()
    packed.run.inline = bytes([packed.run.inline[0] ^ 1]) + packed.run.inline[1:]
    with pytest.raises(LeaseInvalid, match="checksum"):
        InlineCodec(store).land(packed.run)
    np.testing.assert_array_equal(store.pages, before)


def test_shared_memory_checks_the_first_run_and_every_64th() -> None:
    """Pages that change between packing and landing are found when the run was sampled."""
    writer, owner = filled_store(4), filled_store(5)
    sending = SharedMemoryCodec(writer)
    packed = [each for _ in range(SAMPLED + 1) for each in sending.pack([0], [1], ALL)]
    assert [each.run.checksum != 0 for each in packed] == [True, *[False] * (SAMPLED - 1), True]
    writer.pages[0, 5] ^= 1
    with pytest.raises(LeaseInvalid, match="checksum"):
        SharedMemoryCodec(owner).land(packed[0].run)
    SharedMemoryCodec(owner).land(packed[1].run)


@pytest.mark.parametrize("kind", ["inline", "shared_memory"])
def test_pages_of_another_size_are_refused(kind: str) -> None:
    """A peer with another layout can't write into our pages."""
    writer, owner = filled_store(5, page_bytes=64), filled_store(6)
    (packed,) = codec(kind, writer).pack([0], [0], ALL)
    with pytest.raises(Incompatible):
        codec(kind, owner).land(packed.run)


def test_a_place_outside_the_segment_is_refused() -> None:
    """Offsets come from the wire and are not trusted."""
    store = filled_store(7)
    (packed,) = SharedMemoryCodec(store).pack([N_PAGES - 1], [0], ALL)
    packed.run.shared_memory.offsets[0] += PAGE_BYTES
    with pytest.raises(Incompatible, match="past the end"):
        SharedMemoryCodec(store).land(packed.run)


def test_another_process_reads_the_segment_and_an_ended_one_is_refused() -> None:
    """The segment is open to processes of this host as long as its owner lives, and leaves no file."""
    script = (
        "import sys, numpy as np\n"
        "from twolane.transfer.page_store import PageStore\n"
        "store = PageStore(); store.allocate(64); store.divide(4); store.pages[:] = 7\n"
        "print(store.segment, flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        segment = owner.stdout.readline().strip()
        peers = PeerSegments()
        assert set(peers.bytes_of(segment)) == {7}
    finally:
        owner.communicate(timeout=20)
    with pytest.raises(Incompatible, match=r"cannot open|ended"):
        PeerSegments().bytes_of(segment)
    store = filled_store(3)
    peers.bytes_of(store.segment)
    assert set(peers._open) == {store.segment}


def test_unknown_payload_is_refused() -> None:
    """A run without bytes is not taken for zeros."""
    with pytest.raises(Incompatible):
        InlineCodec(filled_store(8)).land(pb.PageRun(page_ids=[0], n_layers=1))
