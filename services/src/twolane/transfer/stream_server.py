"""The owner's end of page streams: TCP, plain or by TLS, bytes read straight into the pages they are for.

A frame is the length of a PagePush (4 bytes, big endian) and the PagePush. If its run announces bytes, they
follow, and behind them their XXH3-64 (8 bytes), so that the sender reads each byte once. Every frame is
answered, in order, by the length of a PagePushAck and the ack. The worker process listens.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
from typing import cast

from google.protobuf.message import DecodeError

from twolane.core.errors import ConfigError, LeaseInvalid, TwolaneError
from twolane.rpc.tls import Tls
from twolane.transfer.landing import Landing
from twolane.transfer.receiving import MAX_READ_BYTES, Receiving
from twolane.v1 import transfer_pb2 as pb

log = logging.getLogger(__name__)

HEAD_BYTES = 4
CHECKSUM_BYTES = 8
# As long as gRPC's keepalive takes to find a peer gone.
SILENCE_S = 30
HANDSHAKE_TIMEOUT_S = 5.0
# A PagePush without its bytes; a page number takes a few.
MAX_MESSAGE_BYTES = 4 << 20


def tune(end: socket.socket) -> None:
    """Sets one end of a stream: no waiting for more to send, and a host that is gone is noticed.

    By itself the kernel tries on for a quarter of an hour, and never asks an idle peer.
    """
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 2)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_S // 6)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class _Part(enum.Enum):
    """What the small buffer holds next."""

    HEAD = 1
    MESSAGE = 2
    CHECKSUM = 3


class StreamServer:
    """Listens for the streams of writers."""

    def __init__(self, landing: Landing, tls: Tls | None = None) -> None:
        """With `tls` a stream in plain text or from another deployment is cut off before its first frame."""
        self._landing = landing
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._streams: set[_Stream] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the bound port.

        Raises:
            ConfigError: the address can't be bound.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Stream(self._landing, self._streams, self._tls),
                host.strip("[]"),
                port,
                ssl=None if self._tls is None else self._tls.server_context(),
                ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_TIMEOUT_S,
            )
        except OSError as error:
            raise ConfigError(
                f"can't listen for page streams on {host}:{port}: {error.strerror}; choose another port",
                param="data_port",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Closes all streams; writers see their deliveries fail."""
        if self._server is not None:
            self._server.close()
            for stream in list(self._streams):
                stream.abort()
            await self._server.wait_closed()


class _Stream(asyncio.BufferedProtocol):
    """One writer's stream: reads head, message and bytes in turn, each into its own buffer."""

    def __init__(self, landing: Landing, streams: set[_Stream], tls: Tls | None) -> None:
        self._landing = landing
        self._tls = tls
        self._streams = streams
        self._transport: asyncio.Transport | None = None
        self._small = memoryview(bytearray(HEAD_BYTES))
        self._filled = 0
        self._part = _Part.HEAD
        self._push = pb.PagePush()
        self._receiving: Receiving | None = None
        self._refusal: TwolaneError | None = None
        # Bytes of the run that have yet to come.
        self._due = 0
        self._past: memoryview | None = None
        self._in_pages = False
        self._received_bytes = 0
        self._look: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        """Ends the stream at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BufferedProtocol."""
        # uvloop's is none by its class, but has its methods.
        self._transport = cast(asyncio.Transport, transport)
        if self._tls is not None and not self._is_ours(self._tls, self._transport):
            self._give_up("the certificate of another deployment")
            # Nothing that may have come behind it is looked at.
            self._transport = None
            return
        self._streams.add(self)
        # The buffer's size is left to the kernel: a fixed one would end its own tuning.
        tune(transport.get_extra_info("socket"))
        self._look_later()

    @staticmethod
    def _is_ours(tls: Tls, transport: asyncio.Transport) -> bool:
        shown = transport.get_extra_info("peercert") or {}
        return tls.is_ours(tuple(name for kind, name in shown.get("subjectAltName", ()) if kind == "DNS"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BufferedProtocol; leases stay: the request's own end closes them."""
        self._streams.discard(self)
        if self._look is not None:
            self._look.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol: room in the pages, if that is what comes next and may land."""
        if self._due == 0:
            return self._small[self._filled :]
        room = self._receiving.room() if self._receiving is not None else None
        self._in_pages = room is not None
        if room is None:
            if self._past is None:
                self._past = memoryview(bytearray(MAX_READ_BYTES))
            room = self._past
        return room[: self._due]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        if self._transport is None:
            return
        self._received_bytes += nbytes
        if self._due > 0:
            if self._in_pages and self._receiving is not None:
                self._receiving.filled(nbytes)
            else:
                # Read past once: the rest has no place any more.
                self._receiving, self._refusal = None, self._refusal or LeaseInvalid("the lease has ended")
            self._due -= nbytes
            if self._due == 0:
                self._expect(CHECKSUM_BYTES, _Part.CHECKSUM)
            return
        self._filled += nbytes
        if self._filled == len(self._small):
            self._next_part()

    def _next_part(self) -> None:
        if self._part is _Part.CHECKSUM:
            self._answer_run(int.from_bytes(self._small, "big"))
            return
        if self._part is _Part.HEAD:
            length = int.from_bytes(self._small, "big")
            if not 0 < length <= MAX_MESSAGE_BYTES:
                self._give_up(f"a message of {length} bytes")
                return
            self._expect(length, _Part.MESSAGE)
            return
        try:
            self._push = pb.PagePush.FromString(bytes(self._small))
        except DecodeError:
            self._give_up("bytes that are no PagePush")
            return
        self._expect(HEAD_BYTES, _Part.HEAD)
        self._due = self._push.run.stream_bytes
        if self._due == 0:
            self._answer(self._landing.apply(self._push))
            return
        self._refusal = None
        try:
            self._receiving = self._landing.begin(self._push)
        except TwolaneError as error:
            self._receiving, self._refusal = None, error

    def _answer_run(self, checksum: int) -> None:
        self._expect(HEAD_BYTES, _Part.HEAD)
        try:
            if self._refusal is None and self._receiving is not None:
                self._receiving.finish(checksum)
        except TwolaneError as error:
            self._refusal = error
        self._receiving = None
        if self._refusal is not None:
            self._answer(self._landing.refuse(self._push, self._refusal))
        else:
            self._answer(pb.PagePushAck(lease_id=self._push.lease_id))

    def _answer(self, ack: pb.PagePushAck) -> None:
        data = ack.SerializeToString()
        if self._transport is not None:
            self._transport.write(len(data).to_bytes(HEAD_BYTES, "big") + data)

    def _look_later(self) -> None:
        """A writer that lives may be silent between frames, but neither before the first nor within one."""
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(SILENCE_S, self._look_again, self._received_bytes)

    def _look_again(self, received_bytes: int) -> None:
        between = self._due == 0 and self._part is _Part.HEAD and self._filled == 0
        if self._received_bytes == received_bytes and (received_bytes == 0 or not between):
            self._give_up(f"nothing for {SILENCE_S} s where more was due")
        else:
            self._look_later()

    def _expect(self, n_bytes: int, part: _Part) -> None:
        self._small, self._filled, self._part = memoryview(bytearray(n_bytes)), 0, part

    def _give_up(self, found: str) -> None:
        log.warning("closing a page stream that sent %s", found)
        self.abort()
