"""Clients that read slowly or never: they are cut off, and their requests free the workers."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

from tests.router.scripted_cluster import ScriptedCluster, start_cluster
from twolane.v1 import worker_pb2


def request_bytes(**fields: object) -> bytes:
    """A chat request as it goes over the wire."""
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def connect(cluster: ScriptedCluster, request: bytes) -> socket.socket:
    """A connection with a tiny receive buffer that has sent its request and reads nothing."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, ("127.0.0.1", cluster.app.port))
    await loop.sock_sendall(made, request)
    return made


class Endless(ScriptedCluster):
    """Its answers are longer than any buffer."""

    def script(self, submit: worker_pb2.Submit) -> list[int]:
        """The same tokens again and again."""
        return super().script(submit) * 200_000


async def endless_cluster(model_dir: Path, **settings: object) -> ScriptedCluster:
    """A router with one worker whose answers fill every buffer."""
    cluster = await start_cluster(model_dir, **settings)
    cluster.__class__ = Endless
    worker = await cluster.add_mixed()
    worker.steps_per_message = 5000
    return cluster


async def test_a_client_that_never_reads_is_cut_off_and_its_request_cancelled(model_dir: Path) -> None:
    """After the write timeout the connection is gone and the worker's books are empty."""
    cluster = await endless_cluster(model_dir, write_timeout_s=0.3)
    worker = cluster.workers["m0"]
    worker.most_tokens = 10**9
    client = await connect(cluster, request_bytes(stream=True))
    try:
        await cluster.until(lambda: len(worker.submits) == 1)
        await cluster.until(lambda: bool(worker.cancels))
        await cluster.until(lambda: not cluster.app.dispatcher.running)
    finally:
        client.close()
        await cluster.stop()


async def test_a_client_that_reads_slowly_gets_everything(model_dir: Path) -> None:
    """As long as it takes something within the timeout it is not cut off."""
    cluster = await endless_cluster(model_dir, write_timeout_s=0.5)
    cluster.workers["m0"].most_tokens = 40_000
    loop = asyncio.get_running_loop()
    client = await connect(cluster, request_bytes(stream=True))
    try:
        received = bytearray()
        async with asyncio.timeout(60):
            while not received.endswith(b"0\r\n\r\n"):
                part = await loop.sock_recv(client, 65536)
                assert part, "cut off"
                received += part
                await asyncio.sleep(0)
        assert b"data: [DONE]" in received
    finally:
        client.close()
        await cluster.stop()


async def test_a_whole_response_that_is_never_read_does_not_hold_its_connection(model_dir: Path) -> None:
    """The response is complete, the buffer is not empty: the connection goes all the same."""
    cluster = await endless_cluster(model_dir, write_timeout_s=0.3)
    cluster.workers["m0"].most_tokens = 800_000
    client = await connect(cluster, request_bytes())
    connections = cluster.app._http.server_state.connections
    try:
        await cluster.until(lambda: len(connections) == 1)
        await cluster.until(lambda: not cluster.app.dispatcher.running and len(connections) == 0)
    finally:
        client.close()
        await cluster.stop()
