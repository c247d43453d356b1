"""Pages must arrive bit for bit by every transport, between processes, or be refused whole."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.core.errors import Incompatible, LeaseInvalid
from twolane.transfer.page_store import PageStore, PeerSegments
from twolane.transfer.transports import MAX_INLINE_BYTES, InlineCodec, SharedMemoryCodec, TransportCodec
from twolane.v1 import transfer_pb2 as pb

N_PAGES, PAGE_BYTES = 8, 96


def filled_store(seed: int, n_pages: int = N_PAGES, page_bytes: int = PAGE_BYTES) -> PageStore:
    """A store of random bytes."""
    store = PageStore()
    store.allocate(n_pages * page_bytes)
    store.divide(n_pages)
    store.pages[:] = np.random.default_rng(seed).integers(0, 256, size=store.pages.shape, dtype=np.uint8)
    return store


def codec(kind: str, store: PageStore) -> TransportCodec:
    """A transport by name."""
    return InlineCodec(store, 1) if kind == "inline" else SharedMemoryCodec(store, 1)


@pytest.mark.parametrize("kind", ["inline", "shared_memory"])
@given(source_ids=st.lists(st.integers(0, N_PAGES - 1), min_size=1, max_size=N_PAGES, unique=True))
def test_pages_arrive_bit_for_bit(kind: str, source_ids: list[int]) -> None:
    """What the receiver unpacks is what the sender holds, in the order named."""
    writer, owner = filled_store(1), filled_store(2)
    runs = list(codec(kind, writer).pack(source_ids, source_ids))
    received = np.concatenate([codec(kind, owner).unpack(run) for run in runs])
    np.testing.assert_array_equal(received, writer.pages[source_ids])


def test_inline_runs_stay_below_the_message_bound() -> None:
    """A long prompt is cut into messages that a server accepts."""
    store = filled_store(3, n_pages=6, page_bytes=MAX_INLINE_BYTES // 2)
    runs = list(InlineCodec(store, 1).pack(list(range(6)), list(range(6))))
    assert len(runs) == 3
    assert all(len(run.inline) <= MAX_INLINE_BYTES for run in runs)


def test_a_damaged_run_is_refused() -> None:
    """One flipped bit fails the checksum."""
    store = filled_store(4)
    (run,) = InlineCodec(store, 1).pack([0], [0])
    run.inline = bytes([run.inline[0] ^ 1]) + run.inline[1:]
    with pytest.raises(LeaseInvalid, match="checksum"):
        InlineCodec(store, 1).unpack(run)


@pytest.mark.parametrize("kind", ["inline", "shared_memory"])
def test_pages_of_another_size_are_refused(kind: str) -> None:
    """A peer with another layout can't write into our pages."""
    writer, owner = filled_store(5, page_bytes=64), filled_store(6)
    (run,) = codec(kind, writer).pack([0], [0])
    with pytest.raises(Incompatible):
        codec(kind, owner).unpack(run)


def test_a_place_outside_the_segment_is_refused() -> None:
    """Offsets come from the wire and are not trusted."""
    store = filled_store(7)
    (run,) = SharedMemoryCodec(store, 1).pack([N_PAGES], [0])
    with pytest.raises(Incompatible, match="past the end"):
        SharedMemoryCodec(store, 1).unpack(run)


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
        assert set(PeerSegments().bytes_of(segment)) == {7}
    finally:
        owner.communicate(timeout=20)
    with pytest.raises(Incompatible, match=r"cannot open|ended"):
        PeerSegments().bytes_of(segment)


def test_unknown_payload_is_refused() -> None:
    """A run without bytes is not taken for zeros."""
    with pytest.raises(Incompatible):
        InlineCodec(filled_store(8), 1).unpack(pb.PageRun(page_ids=[0]))
