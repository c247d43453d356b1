"""Pages travel from a sender to a landing over a real gRPC server, whatever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.transfer.test_transports import filled_store
from twolane.core.errors import Cancelled, TwolaneError
from twolane.rpc.tls import Tls
from twolane.transfer.delivery import Outbound
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.transfer.push_stream import PushStream
from twolane.transfer.sender import Sender
from twolane.transfer.stream_server import StreamServer
from twolane.transfer.transports import codecs
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import transfer_pb2_grpc

PAGE_TOKENS = 4
PROMPT_TOKENS = 10
SOURCE, TARGET = [5, 1, 3], (0, 7, 2)
DEADLINE_S = 10.0
TRANSPORTS = [pb.TRANSPORT_GRPC, pb.TRANSPORT_TCP, pb.TRANSPORT_SHARED_MEMORY]


class Owner(transfer_pb2_grpc.PageTransferServicer):
    """A decode worker's side."""

    def __init__(self, tls: Tls | None = None) -> None:
        self.store = filled_store(2)
        self.handover: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self.abort: asyncio.Future[TwolaneError] = asyncio.get_running_loop().create_future()
        self.landing = Landing(
            self.store,
            codecs(self.store),
            lambda: 0.0,
            lambda _request_id, tokens: self.handover.set_result(tokens),
            lambda _request_id, error: self.abort.set_result(error),
        )
        self.server = grpc.aio.server()
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        transfer_pb2_grpc.add_PageTransferServicer_to_server(self, self.server)
        self.streams = StreamServer(self.landing, tls)
        self.stream_port = 0

    async def Offer(self, request: pb.PageOffer, context: Any) -> pb.PageOfferAck:
        """Never called here: this side makes offers."""
        raise AssertionError("an owner gets no offers")

    async def Want(self, request: pb.PagesWanted, context: Any) -> pb.PagesWantedAck:
        """Never called here: nobody queues prompts."""
        raise AssertionError("an owner without a queue hears of no prompt")

    async def Push(
        self, request_iterator: AsyncIterator[pb.PagePush], context: Any
    ) -> AsyncIterator[pb.PagePushAck]:
        """Lands pushes as the worker's service does."""
        async for push in request_iterator:
            yield self.landing.apply(push)

    def offer(self, transport: pb.Transport.ValueType, skip_tokens: int = 0) -> pb.PageOffer:
        """Opens pages under a lease and describes them."""
        lease = pb.Lease(lease_id="l", request_id="r", fence=1, ttl_ms=60_000, transport=transport)
        page_ids = TARGET[skip_tokens // PAGE_TOKENS :]
        self.landing.expect(ExpectedPages(lease, page_ids, PROMPT_TOKENS, expires_s=60.0))
        address = f"127.0.0.1:{self.port}"
        return pb.PageOffer(
            lease=lease,
            page_ids=page_ids,
            skip_tokens=skip_tokens,
            address=address,
            stream_address=f"127.0.0.1:{self.stream_port}",
        )


class Writer:
    """A prefill worker's side."""

    def __init__(self) -> None:
        self.store = filled_store(1)
        self.ended: asyncio.Future[TwolaneError | None] = asyncio.get_running_loop().create_future()
        self.sender = Sender(
            self.store,
            codecs(self.store),
            PAGE_TOKENS,
            lambda: 0.0,
            lambda _request_id: self.ended.set_result(None),
            lambda _request_id, error: self.ended.set_result(error),
        )

    def compute(self) -> None:
        """Two chunks, then the end of the prompt."""
        self.sender.advance("r", SOURCE, 6)
        self.sender.advance("r", SOURCE, PROMPT_TOKENS)
        self.sender.complete("r", PROMPT_TOKENS, [42])


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    """A listening owner."""
    made = Owner()
    await made.server.start()
    made.stream_port = await made.streams.start("127.0.0.1", 0)
    yield made
    await made.streams.stop()
    await made.server.stop(0)


@pytest.fixture
async def writer() -> AsyncIterator[Writer]:
    """A writer whose streams are closed at the end."""
    made = Writer()
    yield made
    await made.sender.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("order", ["offer before request", "offer before pages", "offer last"])
@pytest.mark.parametrize("skip_tokens", [0, PAGE_TOKENS])
async def test_pages_land_whatever_comes_first(
    owner: Owner, writer: Writer, transport: pb.Transport.ValueType, order: str, skip_tokens: int
) -> None:
    """The offer may be early or late; skipped pages stay as the owner had them."""
    before = owner.store.pages.copy()
    offer = owner.offer(transport, skip_tokens)
    if order == "offer before request":
        writer.sender.offer(offer)
    writer.sender.open("r")
    if order == "offer before pages":
        writer.sender.offer(offer)
    writer.compute()
    if order == "offer last":
        writer.sender.offer(offer)
    async with asyncio.timeout(DEADLINE_S):
        assert await writer.ended is None
        assert await owner.handover == [42]
    skipped = skip_tokens // PAGE_TOKENS
    np.testing.assert_array_equal(
        owner.store.pages[list(TARGET[skipped:])], writer.store.pages[SOURCE[skipped:]]
    )
    np.testing.assert_array_equal(owner.store.pages[list(TARGET[:skipped])], before[list(TARGET[:skipped])])
    assert writer.sender.lease_ids() == []


async def test_a_refused_page_ends_the_transfer(owner: Owner, writer: Writer) -> None:
    """The owner closed the lease: the writer learns why, and no handover follows."""
    offer = owner.offer(pb.TRANSPORT_GRPC)
    owner.landing.close("l")
    writer.sender.open("r")
    writer.sender.offer(offer)
    writer.compute()
    async with asyncio.timeout(DEADLINE_S):
        error = await writer.ended
    assert error is not None
    assert error.code == "lease_invalid"
    assert not owner.handover.done()


async def test_a_lost_owner_ends_the_transfer(owner: Owner, writer: Writer) -> None:
    """Nobody listens: the transfer fails as retryable instead of hanging."""
    offer = owner.offer(pb.TRANSPORT_GRPC)
    await owner.server.stop(0)
    writer.sender.open("r")
    writer.sender.offer(offer)
    writer.compute()
    async with asyncio.timeout(DEADLINE_S):
        error = await writer.ended
    assert error is not None
    assert error.retryable


class SilentStream(PushStream):
    """To a peer that takes pushes and never answers."""

    def __init__(self, address: str) -> None:
        self.taken: list[pb.PagePush] = []
        super().__init__(address)

    async def _open(self) -> None:
        pass

    async def _send(self, outbound: Outbound) -> None:
        self.taken.append(outbound.push)

    async def _receive(self) -> pb.PagePushAck | None:
        await asyncio.Event().wait()
        return None

    async def _shut(self) -> None:
        pass


async def test_pushes_that_nobody_answers_end_the_transfer(
    owner: Owner, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's socket lives, its process has stopped: pages and lease are free once its time is up."""
    monkeypatch.setattr("twolane.transfer.push_stream.ANSWER_TIMEOUT_S", 0.0)
    offer = owner.offer(pb.TRANSPORT_GRPC)
    silent = writer.sender._streams[offer.address] = SilentStream(offer.address)
    writer.sender.open("r")
    writer.sender.offer(offer)
    writer.compute()
    assert writer.sender.pinned_pages() > 0
    async with asyncio.timeout(DEADLINE_S):
        error = await writer.ended
    assert silent.taken
    assert error is not None
    assert (error.code, error.param, error.retryable) == ("worker_lost", "peer", True)
    assert "answered no push" in error.message
    assert (writer.sender.lease_ids(), writer.sender.pinned_pages()) == ([], 0)
    assert not owner.handover.done()
    # The next transfer to that peer finds a stream of its own.
    assert silent.lost
    assert writer.sender._stream(offer) is not silent


async def test_ending_with_an_error_tells_the_owner(owner: Owner, writer: Writer) -> None:
    """The owner frees its pages as soon as the writer gives up."""
    writer.sender.open("r")
    writer.sender.offer(owner.offer(pb.TRANSPORT_GRPC))
    writer.sender.end("r", Cancelled("gone"))
    async with asyncio.timeout(DEADLINE_S):
        assert (await owner.abort).code == "cancelled"
    assert not writer.ended.done()


async def test_ending_without_an_error_says_nothing(owner: Owner, writer: Writer) -> None:
    """An answer that ended with its first token needs no transfer."""
    writer.sender.open("r")
    writer.sender.end("r", None)
    writer.compute()
    assert not writer.ended.done()
    assert writer.sender.lease_ids() == []
