"""Bytes on a plain stream land only under an open lease, whatever happens between two reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest
import xxhash

from tests.transfer.test_transports import filled_store
from twolane.core.errors import ConfigError
from twolane.transfer import stream_server
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.transfer.page_store import Layers
from twolane.transfer.stream_server import HEAD_BYTES, StreamServer
from twolane.transfer.transports import codecs
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import types_pb2

DEADLINE_S = 10.0
# Larger than what a socket holds, so that the reader is in the middle of it for sure.
PAGE_BYTES = 8 << 20
N_PAGES = 4


class Stream:
    """A writer's end by hand, and the owner it speaks to."""

    def __init__(self) -> None:
        self.writer_store = filled_store(1, N_PAGES, PAGE_BYTES)
        self.owner_store = filled_store(2, N_PAGES, PAGE_BYTES)
        self.handovers: list[str] = []
        self.landing = Landing(
            self.owner_store,
            codecs(self.owner_store),
            lambda: 0.0,
            lambda request_id, _tokens: self.handovers.append(request_id),
            lambda _request_id, _error: None,
        )
        self.server = StreamServer(self.landing)
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        """Listens and connects."""
        port = await self.server.start("127.0.0.1", 0)
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", port)

    def expect(self, lease_id: str, page_ids: tuple[int, ...]) -> None:
        """Opens pages."""
        lease = pb.Lease(lease_id=lease_id, request_id=lease_id, fence=1, transport=pb.TRANSPORT_TCP)
        self.landing.expect(ExpectedPages(lease, page_ids, 7, expires_s=1.0))

    def run(self, lease_id: str, page_id: int) -> tuple[bytes, bytes]:
        """A frame's head and bytes: the writer's page 0 for a page of the owner."""
        codec = codecs(self.writer_store)[pb.TRANSPORT_TCP]
        (packed,) = codec.pack([0], [page_id], Layers(0, 1))
        push = pb.PagePush(lease_id=lease_id, fence=1, run=packed.run)
        payload = b"".join(packed.payload)
        return frame(push), payload + xxhash.xxh3_64_digest(payload)

    async def answer(self) -> str:
        """Code of the next answer."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self._reader.readexactly(HEAD_BYTES)
            body = await self._reader.readexactly(int.from_bytes(head, "big"))
        return pb.PagePushAck.FromString(body).error.code

    async def at_end(self) -> bool:
        """Whether the owner closes the stream."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read(1) == b""


def frame(push: pb.PagePush) -> bytes:
    """A frame without its bytes."""
    data = push.SerializeToString()
    return len(data).to_bytes(HEAD_BYTES, "big") + data


@pytest.fixture
async def stream() -> AsyncIterator[Stream]:
    """A connected pair."""
    made = Stream()
    await made.open()
    yield made
    made.writer.close()
    await made.server.stop()


async def test_bytes_land_and_the_handover_follows(stream: Stream) -> None:
    """In one write or byte by byte at the seams: the frames are told apart."""
    stream.expect("l", (3,))
    head, payload = stream.run("l", 3)
    for piece in (head[:3], head[3:9], head[9:], payload[:100], payload[100:]):
        stream.writer.write(piece)
        await stream.writer.drain()
    assert await stream.answer() == ""
    np.testing.assert_array_equal(stream.owner_store.pages[3], stream.writer_store.pages[0])
    done = pb.PagePush(lease_id="l", fence=1, handover=pb.Handover(prompt_tokens=7))
    stream.writer.write(frame(done))
    assert await stream.answer() == ""
    assert stream.handovers == ["l"]


async def test_bytes_without_a_lease_are_read_past(stream: Stream) -> None:
    """They change nothing, and the stream serves the next frame."""
    before = stream.owner_store.pages.copy()
    stream.writer.write(b"".join(stream.run("unknown", 3)))
    assert await stream.answer() == "lease_invalid"
    np.testing.assert_array_equal(stream.owner_store.pages, before)
    stream.expect("l", (2,))
    stream.writer.write(b"".join(stream.run("l", 2)))
    assert await stream.answer() == ""


async def test_a_lease_that_ends_in_the_middle_of_a_run_keeps_the_rest_out(stream: Stream) -> None:
    """The page may belong to another request by then: not one more byte reaches it."""
    stream.expect("l", (3,))
    head, payload = stream.run("l", 3)
    stream.writer.write(head + payload[: PAGE_BYTES // 2])
    page, sent = stream.owner_store.pages[3], stream.writer_store.pages[0]
    async with asyncio.timeout(DEADLINE_S):
        # The server tells nobody of half a run.
        while not np.array_equal(page[: PAGE_BYTES // 2], sent[: PAGE_BYTES // 2]):  # noqa: ASYNC110
            await asyncio.sleep(0)
    stream.landing.close("l")
    page[:] = 7
    stream.writer.write(payload[PAGE_BYTES // 2 :])
    assert await stream.answer() == "lease_invalid"
    assert set(page) == {7}


async def test_damaged_bytes_do_not_count(stream: Stream) -> None:
    """The answer says so, and a handover on them is refused."""
    stream.expect("l", (3,))
    head, payload = stream.run("l", 3)
    stream.writer.write(head + bytes([payload[0] ^ 1]) + payload[1:])
    assert await stream.answer() == "lease_invalid"
    stream.writer.write(frame(pb.PagePush(lease_id="l", fence=1, handover=pb.Handover(prompt_tokens=7))))
    assert await stream.answer() == "lease_invalid"
    assert stream.handovers == []


@pytest.mark.parametrize("noise", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x02\xff\xff"])
async def test_noise_ends_the_stream(stream: Stream, noise: bytes) -> None:
    """Nobody waits for what can't be understood."""
    stream.writer.write(noise)
    assert await stream.at_end()


async def test_a_port_that_is_taken_is_named(stream: Stream) -> None:
    """The second listener says which setting to change."""
    port = int(stream.writer.get_extra_info("peername")[1])
    with pytest.raises(ConfigError, match=str(port)):
        await StreamServer(stream.landing).start("127.0.0.1", port)


class Wire:
    """The transport under a stream that the test feeds by hand."""

    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, _name: str) -> None:
        """There is no socket."""

    def write(self, _data: bytes) -> None:
        """Answers are not looked at."""

    def abort(self) -> None:
        """The stream gave up."""
        self.aborted = True


def feed(fed: Any, data: bytes) -> None:
    """Lets bytes arrive."""
    while data:
        room = fed.get_buffer(-1)
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        fed.buffer_updated(taken)
        data = data[taken:]


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a run"])
async def test_a_writer_that_falls_silent_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, stream: Stream, sent: str
) -> None:
    """Before its first frame or within one; its process may live on, so that no keepalive would tell."""
    monkeypatch.setattr(stream_server, "tune", lambda _socket: None)
    stream.expect("l", (1,))
    head, payload = stream.run("l", 1)
    wire, fed = Wire(), stream_server._Stream(stream.landing, set(), None)
    fed.connection_made(cast(asyncio.Transport, wire))
    data = {"nothing": b"", "half a head": head[:2], "half a run": head + payload[:5]}[sent]
    feed(fed, data)
    fed._look_again(len(data) - 1)
    assert not wire.aborted
    fed._look_again(len(data))
    assert wire.aborted
    fed.connection_lost(None)


async def test_a_writer_may_be_silent_between_frames(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
    """A prompt may take its time to be computed."""
    monkeypatch.setattr(stream_server, "tune", lambda _socket: None)
    wire, fed = Wire(), stream_server._Stream(stream.landing, set(), None)
    fed.connection_made(cast(asyncio.Transport, wire))
    data = frame(pb.PagePush(lease_id="x", fence=1, abort=types_pb2.Error(code="internal")))
    feed(fed, data)
    fed._look_again(len(data))
    assert not wire.aborted
    fed.connection_lost(None)
