"""Transfer speed between two processes, beside a plain memcpy and a plain loopback socket in the same rounds.

Run it by hand: `python tests/bench/transfer.py`. Rounds interleave all kinds, so that a busy machine slows
each of them alike; shares are medians over rounds of the kind's rate by its ceiling's in that round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from twolane.core.errors import TwolaneError
from twolane.rpc.issuing import issue, make_authority, write_folder
from twolane.rpc.tls import Tls
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.transfer.page_store import PageStore, PeerSegments
from twolane.transfer.sender import Sender
from twolane.transfer.stream_server import StreamServer
from twolane.transfer.transports import codecs
from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import transfer_pb2_grpc

LAYERS = 16
KINDS = {
    "shared memory": (pb.TRANSPORT_SHARED_MEMORY, "memcpy"),
    "tcp stream": (pb.TRANSPORT_TCP, "loopback"),
    "tcp, TLS": (pb.TRANSPORT_TCP, "tcp stream"),
    "gRPC": (pb.TRANSPORT_GRPC, "loopback"),
    "gRPC, TLS": (pb.TRANSPORT_GRPC, "gRPC"),
}


def make_store(n_pages: int, page_bytes: int) -> PageStore:
    """A pool whose memory has been touched."""
    store = PageStore()
    store.allocate(n_pages * page_bytes)
    store.divide(n_pages, LAYERS)
    store.pages[:] = np.arange(page_bytes, dtype=np.uint8)
    return store


def make_tls(folder: Path) -> Tls:
    """One certificate for both processes."""
    now, lifetime = datetime.now(UTC), timedelta(hours=1)
    authority = make_authority("bench.svc", now, lifetime)
    write_folder(folder, issue(authority, ["worker.bench.svc"], now, lifetime), authority.certificate)
    return Tls(folder)


def page_order(n_pages: int, seed: int) -> list[int]:
    """Half of the pool's pages, as scattered as a pool that has worked for a while: runs of four."""
    starts = np.random.default_rng(seed).permutation(n_pages // 4)[: n_pages // 8]
    return [int(start) * 4 + offset for start in starts for offset in range(4)]


class Owner(transfer_pb2_grpc.PageTransferServicer):
    """The process that pages come to; obeys lines on stdin."""

    def __init__(self, n_pages: int, page_bytes: int, tls: Tls) -> None:
        self.store = make_store(n_pages, page_bytes)
        self.page_ids = page_order(n_pages, 2)
        self.tls = tls
        self.landing = Landing(
            self.store, codecs(self.store), time.monotonic, lambda *_: None, lambda *_: None
        )
        self.streams = StreamServer(self.landing)
        self.secured_streams = StreamServer(self.landing, tls)
        self.peers = PeerSegments()

    async def Offer(self, request: pb.PageOffer, context: Any) -> pb.PageOfferAck:
        """Never called: this side makes offers."""
        raise AssertionError("an owner gets no offers")

    async def Want(self, request: pb.PagesWanted, context: Any) -> pb.PagesWantedAck:
        """Never called: nobody queues prompts here."""
        raise AssertionError("an owner without a queue hears of no prompt")

    async def Push(self, request_iterator: Any, context: Any) -> Any:
        """As a worker does."""
        async for push in request_iterator:
            yield self.landing.apply(push)

    async def serve(self) -> None:
        """Says where it listens, then obeys until stdin ends."""
        options = [("grpc.max_receive_message_length", 64 << 20)]
        server = grpc.aio.server(options=options)
        port = server.add_insecure_port("127.0.0.1:0")
        secured = server.add_secure_port("127.0.0.1:0", self.tls.server_credentials())
        transfer_pb2_grpc.add_PageTransferServicer_to_server(self, server)
        await server.start()
        plain = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._drain_plain, args=(plain,), daemon=True).start()
        ports = {"grpc": port, "stream": await self.streams.start("127.0.0.1", 0)}
        ports |= {"grpc TLS": secured, "stream TLS": await self.secured_streams.start("127.0.0.1", 0)}
        print(json.dumps(ports | {"plain": plain.getsockname()[1]}), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(self._obey(json.loads(line))), flush=True)
        await server.stop(0)

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if "cpu" in order:
            return {"seconds": time.process_time()}
        if "segment" in order:
            return {"seconds": self._memcpy(order["segment"])}
        lease = pb.Lease(**order)
        expected = ExpectedPages(lease, tuple(self.page_ids), order["fence"], time.monotonic() + 600)
        self.landing.expect(expected)
        return {}

    def _memcpy(self, segment: str) -> float:
        """As many bytes in one piece, from the same segment to the same pool."""
        n_bytes = len(self.page_ids) * self.store.page_bytes
        source, target = self.peers.bytes_of(segment)[:n_bytes], self.store.pages.reshape(-1)[:n_bytes]
        began = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - began

    def _drain_plain(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        flat = memoryview(self.store.pages.reshape(-1).data)
        n_bytes = len(self.page_ids) * self.store.page_bytes
        while True:
            got = 0
            while got < n_bytes:
                n = connection.recv_into(flat[got : min(n_bytes, got + (1 << 20))])
                if n == 0:
                    return
                got += n
            connection.sendall(b"!")


class Writer:
    """The process that sends, and what it knows of the owner."""

    def __init__(self, n_pages: int, page_bytes: int) -> None:
        self.store = make_store(n_pages, page_bytes)
        self.page_ids = page_order(n_pages, 1)
        self.n_bytes = len(self.page_ids) * page_bytes
        self._folder = tempfile.TemporaryDirectory()
        tls = make_tls(Path(self._folder.name) / "tls")
        flags = ["--owner", str(n_pages), str(page_bytes), "--tls-dir", str(Path(self._folder.name) / "tls")]
        self.owner = subprocess.Popen(
            [sys.executable, __file__, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports = self._read()
        self.plain = socket.create_connection(("127.0.0.1", self.ports["plain"]))
        self._fence = 0
        self._ended: asyncio.Future[TwolaneError | None]
        self.senders = [self._make_sender(), self._make_sender()]
        self.senders[1].tls = tls

    def _make_sender(self) -> Sender:
        return Sender(
            self.store,
            codecs(self.store),
            1,
            time.monotonic,
            lambda _id: self._ended.set_result(None),
            lambda _id, error: self._ended.set_result(error),
        )

    def tell(self, order: dict[str, Any]) -> dict[str, Any]:
        """Gives an order and waits for its answer."""
        assert self.owner.stdin is not None
        self.owner.stdin.write(json.dumps(order) + "\n")
        self.owner.stdin.flush()
        return self._read()

    def memcpy(self) -> float:
        """Seconds of a plain copy."""
        return float(self.tell({"segment": self.store.segment})["seconds"])

    def loopback(self) -> float:
        """Seconds by a plain socket."""
        flat = memoryview(self.store.pages.reshape(-1).data)[: self.n_bytes]
        began = time.perf_counter()
        for start in range(0, self.n_bytes, 1 << 20):
            self.plain.sendall(flat[start : start + (1 << 20)])
        assert self.plain.recv(1) == b"!"
        return time.perf_counter() - began

    def cpu(self) -> float:
        """CPU seconds of both processes so far."""
        return float(self.tell({"cpu": 1})["seconds"]) + time.process_time()

    async def transfer(
        self,
        transport: pb.Transport.ValueType,
        step_s: float = 0.0,
        ahead_every: int = 0,
        secured: bool = False,
    ) -> float:
        """Seconds from the start to the answer to the handover.

        Args:
            transport: how.
            step_s: length of the step that computes the pages, spent asleep as a host does beside a device.
            ahead_every: layers that go ahead at once while it lasts; 0: all go at its end.
            secured: by TLS, each side with a certificate.
        """
        self._fence = len(self.page_ids)
        request_id = f"r{time.monotonic_ns()}"
        lease: dict[str, Any] = {
            "lease_id": request_id,
            "request_id": request_id,
            "fence": self._fence,
            "ttl_ms": 600_000,
        }
        self.tell(lease | {"transport": transport})
        self._ended = asyncio.get_running_loop().create_future()
        sender, kind = self.senders[secured], " TLS" if secured else ""
        sender.open(request_id)
        began = time.perf_counter()
        sender.offer(
            pb.PageOffer(
                lease=pb.Lease(**lease, transport=transport),
                page_ids=page_order(self.store.pages.shape[0], 2),
                address=f"127.0.0.1:{self.ports[f'grpc{kind}']}",
                stream_address=f"127.0.0.1:{self.ports[f'stream{kind}']}",
            )
        )
        for layer in range(1, LAYERS + 1) if step_s else ():
            await asyncio.sleep(step_s / LAYERS)
            if ahead_every and layer % ahead_every == 0:
                sender.advance_layers(request_id, self.page_ids, len(self.page_ids), layer)
        sender.advance(request_id, self.page_ids, len(self.page_ids))
        sender.complete(request_id, len(self.page_ids), [1])
        if (error := await self._ended) is not None:
            raise error
        return time.perf_counter() - began

    async def close(self) -> None:
        """Ends the owner."""
        for sender in self.senders:
            await sender.close()
        self.plain.close()
        self.owner.communicate(timeout=20)
        self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        assert self.owner.stdout is not None
        answer: dict[str, Any] = json.loads(self.owner.stdout.readline())
        return answer


async def measure(rounds: int, n_pages: int, page_bytes: int, only: Sequence[str]) -> None:
    """Interleaved rounds; prints rates and shares."""
    writer = Writer(n_pages, page_bytes)
    kinds = {name: kind for name, kind in KINDS.items() if not only or name in only}
    rates: dict[str, list[float]] = {name: [] for name in ("memcpy", "loopback", *kinds)}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(rounds + 1):
        for name, rate in rates.items():
            before = writer.cpu()
            if name in kinds:
                seconds = await writer.transfer(kinds[name][0], secured=name.endswith("TLS"))
            else:
                seconds = writer.memcpy() if name == "memcpy" else writer.loopback()
            # The first round pays for mappings and connections.
            if number:
                rate.append(writer.n_bytes / seconds / 1e9)
                costs[name].append((writer.cpu() - before) / writer.n_bytes * 1e9)
    await writer.close()
    print(f"{writer.n_bytes >> 20} MiB in pages of {page_bytes >> 10} KiB, {rounds} rounds, medians:")
    for name, each in rates.items():
        line = f"  {name:14} {statistics.median(each):6.2f} GB/s  [{min(each):.2f} to {max(each):.2f}]"
        line += f"  {statistics.median(costs[name]):5.2f} CPU s/GB"
        if name in kinds and kinds[name][1] in rates:
            ceiling = kinds[name][1]
            share = statistics.median(mine / top for mine, top in zip(each, rates[ceiling], strict=True))
            line += f"  {share:4.0%} of {ceiling}"
        print(line)


async def measure_layers(rounds: int, n_pages: int, page_bytes: int) -> None:
    """Time to handover with and without layers that go ahead; the step lasts as long as its transfer."""
    writer = Writer(n_pages, page_bytes)
    print(f"{writer.n_bytes >> 20} MiB in {LAYERS} layers, {rounds} rounds, medians:")
    for name in ("shared memory", "tcp stream"):
        transport = KINDS[name][0]
        alone = [await writer.transfer(transport) for _ in range(4)][1:]
        step_s = statistics.median(alone)
        ratios, waits = [], []
        for _ in range(rounds):
            whole = await writer.transfer(transport, step_s)
            ahead = await writer.transfer(transport, step_s, ahead_every=2)
            ratios.append(ahead / whole)
            waits.append((ahead - step_s) / max(1e-9, whole - step_s))
        print(
            f"  {name:14} step {step_s * 1e3:.0f} ms: time to handover x {statistics.median(ratios):.2f}, "
            f"of it after the step x {statistics.median(waits):.2f}"
        )
    await writer.close()


def main() -> None:
    """Parses flags; with --owner it is the other process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mib", type=int, default=256, help="size of each pool; half of it travels")
    parser.add_argument("--page-kib", type=int, default=256)
    parser.add_argument("--only", action="append", default=[], choices=list(KINDS))
    parser.add_argument("--layers", action="store_true", help="measure layers that go ahead instead")
    parser.add_argument("--owner", type=int, nargs=2)
    parser.add_argument("--tls-dir", type=Path)
    flags = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if flags.owner:
        import uvloop

        pages, size = flags.owner
        uvloop.run(Owner(pages, size, Tls(flags.tls_dir)).serve())
        return
    n_pages = (flags.mib << 10) // flags.page_kib
    import uvloop

    if flags.layers:
        uvloop.run(measure_layers(flags.rounds, n_pages, flags.page_kib << 10))
    else:
        uvloop.run(measure(flags.rounds, n_pages, flags.page_kib << 10, flags.only))


if __name__ == "__main__":
    main()
