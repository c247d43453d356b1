"""The whole product as a user starts it: `twolane up` with the demo model, real processes, real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest

from twolane.v1 import worker_pb2
from twolane.v1.worker_pb2_grpc import WorkerStub

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0


class Product:
    """One `twolane up`.

    Attributes:
        url: of the OpenAI API.
        folder: logs and port files.
        process: the launcher.
    """

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "twolane.cli.main", "up", "--port", "0", "--grpc-port", "0"]
        with (folder / "up.txt").open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [*command, "--log-dir", str(folder), *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
            )
        self.url = self._wait_for_url()

    @property
    def output(self) -> str:
        """What the launcher has printed."""
        return (self.folder / "up.txt").read_text(encoding="utf-8")

    def _wait_for_url(self) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if found := re.search(r"twolane is ready: (http://\S+)", self.output):
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"twolane up did not get ready:\n{self.output}")

    def ports(self, name: str) -> dict[str, int]:
        """Bound ports of one child."""
        ports: dict[str, int] = json.loads((self.folder / f"{name}.ports.json").read_text(encoding="utf-8"))
        return ports

    def log(self, name: str) -> str:
        """Log of one child."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def books(self, name: str) -> worker_pb2.InspectResponse:
        """A worker's books."""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports(name)['grpc']}") as channel:
            answer: worker_pb2.InspectResponse = WorkerStub(channel).Inspect(
                worker_pb2.InspectRequest(), timeout=10
            )
            return answer

    def pid(self, name: str) -> int:
        """Process id of one child, by its command line."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if f"{name}.ports.json" in " ".join(child.cmdline()):
                return child.pid
        raise AssertionError(f"no child {name}")

    def client(self, **options: Any) -> Any:
        """The official client; untyped, since tests send what its types forbid."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)

    def stop(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One prefill and one decode worker, shared by tests that leave it as they found it."""
    running = Product(tmp_path_factory.mktemp("product"))
    yield running
    assert running.stop() == 0


@pytest.fixture
def new_product(tmp_path: Path) -> Iterator[Callable[..., Product]]:
    """Products that a test may harm."""
    started: list[Product] = []

    def start(*flags: str, **environment: str) -> Product:
        folder = tmp_path / f"up-{len(started)}"
        folder.mkdir()
        started.append(Product(folder, *flags, **environment))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()


def eventually(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    """Waits for a condition in another process."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.02)
