"""Broker processes that a test kills and starts again at the same address."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.worker.stack import DEADLINE_S, until
from twolane.rpc.channel import open_channel
from twolane.v1 import broker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub

# Everything happens fast: a lease must be renewed several times within each test.
PACE = ["--lease-ttl-s", "1", "--worker-ttl-s", "2", "--heartbeat-interval-s", "0.2", "--settle-s", "0.1"]


class BrokerProcess:
    """One broker at an address that stays the same."""

    def __init__(self, folder: Path, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        self._flags = flags
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it, with empty books unless they are elsewhere."""
        self._folder.mkdir(exist_ok=True)
        ports = self._folder / "ports.json"
        ports.unlink(missing_ok=True)
        where = ["--port", self.address.rpartition(":")[2], "--http-port", "0", "--port-file", str(ports)]
        command = [sys.executable, "-m", "twolane.cli.main", "broker", *where, *PACE, *self._flags]
        with (self._folder / "broker.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, stderr=log)
        self._process = process
        await until(lambda: ports.exists() or process.returncode is not None)
        assert process.returncode is None, (self._folder / "broker.log").read_text()
        assert json.loads(ports.read_text())["grpc"] == int(where[1])

    async def kill(self) -> None:
        """Ends it as a crash does; harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def books(self) -> broker_pb2.BrokerInspectResponse:
        """What it knows."""
        async with open_channel(self.address) as channel:
            return await BrokerStub(channel).Inspect(
                broker_pb2.BrokerInspectRequest(), timeout=DEADLINE_S, wait_for_ready=True
            )


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for something that has to be asked for."""
    async with asyncio.timeout(DEADLINE_S):
        # Conditions ask other processes, which know no event for each of them.
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
