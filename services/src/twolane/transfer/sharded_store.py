"""Pages whose heads lie on several ranks, as one memory: what leaves and arrives has all heads.

Rank 0 of a tensor-parallel worker speaks to its peers; each other rank serves its part of the pages to rank 0
over a socket of its own. A page on its way looks as it does on a worker without ranks, so that workers of any
number of ranks exchange pages.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from twolane.core.errors import WorkerLost
from twolane.transfer.device_store import DeviceStore
from twolane.transfer.page_store import Layers

log = logging.getLogger(__name__)

# What rank 0 asks: read or write, the steps that must be over, pages, first layer, layers.
_ASK = struct.Struct("<BQIII")
_READ, _WRITE = 0, 1
_TOKEN_BYTES = 16

Part = npt.NDArray[np.uint8]


class ShardServer:
    """Serves one rank's part of the pages to rank 0, in threads of its own.

    Attributes:
        place: host:port and the word that opens it, for rank 0 alone.
    """

    def __init__(
        self, store: DeviceStore, host: str, over: Callable[[int, float], bool], timeout_s: float
    ) -> None:
        """Listens on a free port of `host`.

        Args:
            store: this rank's pages.
            host: address to listen on.
            over: waits until so many steps are over here; False: not in time.
            timeout_s: how long rank 0 may stop in the middle of a question.
        """
        self._store = store
        self._over = over
        self._timeout_s = timeout_s
        self._word = secrets.token_hex(_TOKEN_BYTES // 2).encode()
        self._socket = socket.create_server((host, 0))
        self.place = f"{host}:{self._socket.getsockname()[1]}/{self._word.decode()}"
        threading.Thread(target=self._accept, name="page-shard", daemon=True).start()

    def close(self) -> None:
        """Listens no longer."""
        with contextlib.suppress(OSError):
            # Wakes the thread that waits for a connection, which closing alone does not.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="page-shard", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(self._timeout_s)
                if not secrets.compare_digest(bytes(_receive(connection, _TOKEN_BYTES)), self._word):
                    return
                while True:
                    # Between questions rank 0 may be silent; whether it lives is watched elsewhere.
                    connection.settimeout(None)
                    head = _receive(connection, _ASK.size)
                    connection.settimeout(self._timeout_s)
                    self._answer(connection, *_ASK.unpack(bytes(head)))
            except (OSError, WorkerLost) as error:
                log.info("rank 0 asks for no more pages: %s", error)

    def _answer(
        self, connection: socket.socket, what: int, steps: int, n_pages: int, first: int, count: int
    ) -> None:
        ids = np.frombuffer(_receive(connection, 8 * n_pages), dtype=np.int64).tolist()
        layers = Layers(first, count)
        if not self._over(steps, self._timeout_s):
            raise WorkerLost(f"step {steps} is not over here after {self._timeout_s:g} s")
        if what == _READ:
            for buffer in self._store.source(ids, layers):
                connection.sendall(buffer)
            return
        buffers = self._store.target(ids, layers)
        for buffer in buffers:
            _receive_into(connection, buffer)
        self._store.landed(ids, layers, buffers)
        connection.sendall(b"\0")


class ShardedStore:
    """All ranks' pages as PageMemory, on rank 0.

    Attributes:
        n_layers: layers of a page.
    """

    def __init__(
        self, store: DeviceStore, places: Sequence[str], steps: Callable[[], int], timeout_s: float
    ) -> None:
        """Connects to the other ranks.

        Args:
            store: this rank's own part.
            places: of the servers of ranks 1, 2 and so on.
            steps: steps that are over on this rank.
            timeout_s: how long another rank may take to answer.

        Raises:
            WorkerLost: one can't be reached.
        """
        self._store = store
        self._steps = steps
        self._peers = [_open(place, timeout_s) for place in places]
        self.n_layers = store.n_layers

    @property
    def page_bytes(self) -> int:
        """Bytes of one page with the heads of all ranks."""
        return self._store.page_bytes * (len(self._peers) + 1)

    def source(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: a copy, gathered from all ranks."""
        whole = self._empty(len(page_ids), layers)
        self._ask(_READ, page_ids, layers)
        own = [np.frombuffer(part, dtype=np.uint8) for part in self._store.source(page_ids, layers)]
        whole[:, :, :, 0] = np.concatenate(own).reshape(*whole.shape[:3], -1)
        for rank, peer in enumerate(self._peers, 1):
            part = np.empty((*whole.shape[:3], whole.shape[4]), dtype=np.uint8)
            _receive_into(peer, memoryview(part.reshape(-1).data))
            whole[:, :, :, rank] = part
        return [memoryview(whole.reshape(-1).data)]

    def target(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: memory of its own, empty yet."""
        return [memoryview(self._empty(len(page_ids), layers).reshape(-1).data)]

    def landed(self, page_ids: Sequence[int], layers: Layers, buffers: Sequence[memoryview]) -> None:
        """See PageMemory: hands every rank its heads, complete on return."""
        (buffer,) = buffers
        whole = np.frombuffer(buffer, dtype=np.uint8).reshape(self._empty(len(page_ids), layers).shape)
        self._ask(_WRITE, page_ids, layers)
        for rank, peer in enumerate(self._peers, 1):
            _send(peer, np.ascontiguousarray(whole[:, :, :, rank]).reshape(-1).data)
        mine = np.ascontiguousarray(whole[:, :, :, 0]).reshape(-1)
        self._store.landed(page_ids, layers, [memoryview(mine.data)])
        for peer in self._peers:
            _receive(peer, 1)

    def close(self) -> None:
        """Lets go of the other ranks."""
        for peer in self._peers:
            peer.close()

    def _empty(self, n_pages: int, layers: Layers) -> Part:
        """[pages, layers, keys and values, ranks, bytes of a rank's heads]."""
        n_ranks = len(self._peers) + 1
        part = self._store.page_bytes // self.n_layers // 2
        return np.empty((n_pages, layers.count, 2, n_ranks, part), dtype=np.uint8)

    def _ask(self, what: int, page_ids: Sequence[int], layers: Layers) -> None:
        ids = np.asarray(page_ids, dtype=np.int64)
        head = _ASK.pack(what, self._steps(), len(ids), layers.first, layers.count)
        for peer in self._peers:
            _send(peer, head + ids.tobytes())


def _open(place: str, timeout_s: float) -> socket.socket:
    address, _, word = place.partition("/")
    host, _, port = address.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(word.encode())
    except OSError as error:
        raise WorkerLost(f"the pages of a rank at {address} can't be reached: {error}") from error
    return connection


def _send(peer: socket.socket, data: bytes | memoryview) -> None:
    try:
        peer.sendall(data)
    except OSError as error:
        raise WorkerLost(f"a rank takes no pages: {error}") from error


def _receive(peer: socket.socket, n_bytes: int) -> bytearray:
    data = bytearray(n_bytes)
    _receive_into(peer, memoryview(data))
    return data


def _receive_into(peer: socket.socket, buffer: memoryview) -> None:
    """Fills the buffer. Raises WorkerLost when the other side ends or is silent too long."""
    at = 0
    while at < len(buffer):
        try:
            n_bytes = peer.recv_into(buffer[at:])
        except OSError as error:
            raise WorkerLost(f"a rank sends no pages: {error}") from error
        if n_bytes == 0:
            raise WorkerLost("a rank has closed its pages")
        at += n_bytes
