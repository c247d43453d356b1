"""The writer's end of a page stream over TCP: the kernel, or the cipher, reads straight from the pages.

Frames are described in stream_server.py. The sender opens one per peer whose leases say TRANSPORT_TCP.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Sequence

import xxhash

from twolane.rpc.tls import Tls
from twolane.transfer.delivery import Outbound
from twolane.transfer.push_stream import PushStream
from twolane.transfer.stream_server import HEAD_BYTES, tune
from twolane.v1 import transfer_pb2 as pb

CONNECT_TIMEOUT_S = 5.0
# Bytes are hashed and given to the kernel in pieces that the processor's cache holds in between.
PIECE_BYTES = 1 << 20
# Parts given to the kernel at once; it takes 1024 at most.
MAX_PARTS = 64
# After so many bytes others get their turn even if the socket would take more.
TURN_BYTES = 4 << 20


class _Batch:
    """Parts that go to the kernel together."""

    def __init__(self, first: memoryview) -> None:
        self._parts = [first]
        self._bytes = len(first)

    @property
    def full(self) -> bool:
        """Whether it is worth a call."""
        return self._bytes >= PIECE_BYTES or len(self._parts) >= MAX_PARTS

    def add(self, part: memoryview) -> None:
        """Puts a part behind the others."""
        self._parts.append(part)
        self._bytes += len(part)

    def take(self) -> list[memoryview]:
        """All parts; it is empty afterwards."""
        taken, self._parts, self._bytes = self._parts, [], 0
        return taken


class TcpStream(PushStream):
    """Pushes as frames on a socket of our own."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self._socket: socket.socket | None = None
        self._tls = tls
        self._welcome = False
        self._turn = 0
        super().__init__(address)

    async def _open(self) -> None:
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            family, kind, protocol, _name, place = found[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            tune(self._socket)
            await loop.sock_connect(self._socket, place)
            if self._tls is not None:
                await self._secure(self._tls)

    async def _secure(self, tls: Tls) -> None:
        """Both sides show their certificates; the peer must be a worker of our deployment."""
        assert self._socket is not None
        self._socket = secured = tls.client_context().wrap_socket(
            self._socket, server_hostname=tls.name_of("worker"), do_handshake_on_connect=False
        )
        while True:
            try:
                secured.do_handshake()
                return
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()

    async def _send(self, outbound: Outbound) -> None:
        message = outbound.push.SerializeToString()
        head = len(message).to_bytes(HEAD_BYTES, "big") + message
        if not outbound.payload:
            await self._send_parts([memoryview(head)])
            return
        digest, batch = xxhash.xxh3_64(), _Batch(memoryview(head))
        for part in outbound.payload:
            for start in range(0, len(part), PIECE_BYTES):
                piece = part[start : start + PIECE_BYTES]
                digest.update(piece)
                batch.add(piece)
                if batch.full:
                    await self._send_parts(batch.take())
        batch.add(memoryview(digest.digest()))
        await self._send_parts(batch.take())

    async def _receive(self) -> pb.PagePushAck | None:
        head = await self._read_exactly(HEAD_BYTES)
        body = None if head is None else await self._read_exactly(int.from_bytes(head, "big"))
        if body is None:
            return None
        self._welcome = True
        return pb.PagePushAck.FromString(body)

    def _hint(self) -> str:
        # Not every event loop sends the alert that would say so.
        return "; it may not accept our certificate" if self._tls is not None and not self._welcome else ""

    async def _shut(self) -> None:
        if self._socket is not None:
            self._socket.close()

    async def _send_parts(self, parts: Sequence[memoryview]) -> None:
        assert self._socket is not None
        left = deque(part for part in parts if len(part))
        while left:
            try:
                taken = self._give(self._socket, left)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()
                continue
            self._turn += taken
            while taken:
                first = left.popleft()
                if taken < len(first):
                    left.appendleft(first[taken:])
                    break
                taken -= len(first)
            if self._turn >= TURN_BYTES:
                self._turn = 0
                await asyncio.sleep(0)

    @staticmethod
    def _give(end: socket.socket, parts: deque[memoryview]) -> int:
        if isinstance(end, ssl.SSLSocket):
            # One record at a time.
            return end.send(parts[0])
        return end.sendmsg([parts[i] for i in range(min(len(parts), MAX_PARTS))])

    async def _readable(self) -> None:
        assert self._socket is not None
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self._socket.fileno()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)

    async def _writable(self) -> None:
        assert self._socket is not None
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        descriptor = self._socket.fileno()
        loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)

    async def _read_exactly(self, n_bytes: int) -> bytes | None:
        data = b""
        while len(data) < n_bytes:
            more = await self._take(n_bytes - len(data))
            if not more:
                return None
            data += more
        return data

    async def _take(self, n_bytes: int) -> bytes:
        assert self._socket is not None
        if not isinstance(self._socket, ssl.SSLSocket):
            return await asyncio.get_running_loop().sock_recv(self._socket, n_bytes)
        while True:
            try:
                return self._socket.recv(n_bytes)
            except ssl.SSLWantReadError:
                await self._readable()
