"""A model that sleeps: router and broker run alone, a request waits, workers start, the answer streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import STOP_TIMEOUT_S, eventually
from twolane.cli.child import ChildSpec
from twolane.cli.topology import UpConfig, broker_child, router_child, worker_children

CHAT: Any = {
    "model": "twolane-demo",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_completion_tokens": 24,
    "stream": True,
}


class Processes:
    """Processes that start one by one, as an operator would start them."""

    def __init__(self, folder: Path) -> None:
        self.config = UpConfig(log_dir=str(folder), port=0, grpc_port=0)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, spec: ChildSpec, *flags: str) -> dict[str, int]:
        """Starts one and returns its ports."""
        assert spec.port_file is not None
        spec.port_file.unlink(missing_ok=True)
        with spec.log_path.open("ab") as log:
            command = [sys.executable, "-m", "twolane.cli.main", *spec.args, *flags]
            environment = os.environ | spec.environment
            self._children[spec.name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        eventually(spec.port_file.exists, 150.0)
        ports: dict[str, int] = json.loads(spec.port_file.read_text(encoding="utf-8"))
        return ports

    def stop(self, name: str) -> int:
        """Asks one to end, as a kubelet does; returns its exit status."""
        child = self._children.pop(name)
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(STOP_TIMEOUT_S)
        finally:
            if child.poll() is None:
                child.kill()

    def pid(self, name: str) -> int:
        """Process id of one."""
        return self._children[name].pid

    def wait(self, name: str, timeout_s: float) -> int:
        """The exit status of one that ends by itself."""
        return self._children.pop(name).wait(timeout_s)

    def log(self, name: str) -> str:
        """What one has written."""
        return (Path(self.config.log_dir) / f"{name}.log").read_text(encoding="utf-8")

    def stop_all(self) -> None:
        """Ends what still runs."""
        for name in list(self._children):
            self.stop(name)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Nothing yet."""
    made = Processes(tmp_path)
    yield made
    made.stop_all()


class Call(threading.Thread):
    """A client that waits for its answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=100)
        self.pieces: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Streams one answer."""
        try:
            for chunk in self._client.chat.completions.create(**CHAT):
                self.pieces += [choice.delta.content or "" for choice in chunk.choices]
        except Exception as error:
            self.error = error

    def answer(self) -> str:
        """The whole text; fails when there is none in time."""
        self.join(100)
        assert not self.is_alive()
        assert self.error is None, self.error
        return "".join(self.pieces)


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def test_a_request_wakes_a_sleeping_model_and_nothing_is_lost(processes: Processes) -> None:
    """Held, answered piece by piece; asleep again, and held and answered again by other workers."""
    config = processes.config
    broker = processes.start(broker_child(config))["grpc"]
    router = processes.start(router_child(config, broker), "--hold-s", "90")
    url = f"http://127.0.0.1:{router['http']}"
    answers = []
    for _ in range(2):
        call = Call(url)
        call.start()
        eventually(lambda: _metric(url, "twolane_router_held_requests") == 1)
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as response:
            assert response.status == 200
        assert call.is_alive()
        workers = worker_children(config, broker)
        for worker in workers:
            processes.start(worker)
        answers.append(call.answer())
        assert len(call.pieces) > 5
        assert _metric(url, "twolane_router_held_requests") == 0
        for worker in workers:
            assert processes.stop(worker.name) == 0
        eventually(lambda: _metric(url, "twolane_router_workers") == 0)
    assert all(answers)


def test_without_workers_and_without_a_hold_the_refusal_is_clear(processes: Processes) -> None:
    """503 at once, with the reason."""
    config = processes.config
    broker = processes.start(broker_child(config))["grpc"]
    router = processes.start(router_child(config, broker))
    call = Call(f"http://127.0.0.1:{router['http']}")
    call.start()
    call.join(60)
    assert isinstance(call.error, openai.InternalServerError)
    assert call.error.status_code == 503
    assert "no worker is ready" in call.error.message
