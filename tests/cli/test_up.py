"""`twolane up` as a person runs it: started, used, stopped and broken, with nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from twolane.cli.chat import main as chat

START_S = 150.0
STOP_S = 60.0
ROLES = ["broker", "decode", "prefill", "router"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Launched:
    """A running `twolane up` and all that belongs to it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.logs = folder / "logs"
        self.output = folder / "output"
        command = [sys.executable, "-P", "-m", "twolane.cli.main", "up", "--log-dir", str(self.logs)]
        # As from a terminal: Ctrl-C would go to the whole group.
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--grpc-port", "0", "--kv-memory-mib", "16", *flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.children: list[psutil.Process] = []

    def shown(self) -> str:
        """What it has printed."""
        return self.output.read_text(encoding="utf-8")

    def wait_ready(self) -> str:
        """Waits until it prints its address, and returns that."""
        end_s = time.monotonic() + START_S
        while not (found := re.search(r"twolane is ready: (http://\S+)", self.shown())):
            assert self.process.poll() is None, self.shown()
            assert time.monotonic() < end_s, self.shown()
            time.sleep(0.1)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return found.group(1)

    def child(self, word: str) -> psutil.Process:
        """The child whose command line has this word."""
        return next(child for child in self.children if word in child.cmdline())

    def assert_nothing_is_left(self) -> None:
        """No child runs, and of the run only logs remain."""
        _, alive = psutil.wait_procs(self.children, timeout=STOP_S)
        assert alive == []
        assert {path.suffix for path in self.logs.iterdir()} == {".log"}


@contextmanager
def _launched(folder: Path, *flags: str) -> Iterator[Launched]:
    run = Launched(folder, *flags)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait(STOP_S)
        psutil.wait_procs(run.children, timeout=STOP_S)


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def test_a_pair_of_workers_serves_until_ctrl_c(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints can be used as it stands; after Ctrl-C no process, segment or file is left."""
    before = _shared_memory()
    with _launched(tmp_path, "--model", str(model_folder)) as run:
        url = run.wait_ready()
        shown = run.shown()
        [body] = re.findall(r"-d '(.*)'", shown)
        assert json.loads(body) | {"messages": []} == {"model": "tiny", "stream": True, "messages": []}
        assert f"twolane chat --url {url}" in shown
        assert str(run.logs) in shown
        request = urllib.request.Request(f"{url}/v1/chat/completions", body.encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read().rstrip().endswith(b"data: [DONE]")
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        assert chat(["--url", url, "--max-tokens", "3"]) == 0
        said = capsys.readouterr()
        # Random weights may well say nothing but blanks.
        assert (said.out[-1:], said.err) == ("\n", "")
        assert sorted(word for word in ROLES for child in run.children if word in child.cmdline()) == ROLES
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(STOP_S) == 0
        run.assert_nothing_is_left()
        assert "killed" not in run.shown()
    assert _shared_memory() <= before


def test_kill_9_of_the_launcher_ends_its_children(model_folder: Path, tmp_path: Path) -> None:
    """Nobody has to hunt for processes."""
    with _launched(tmp_path, "--model", str(model_folder), "--mixed", "1") as run:
        run.wait_ready()
        assert len(run.children) == 3
        run.process.kill()
        run.process.wait(STOP_S)
        _, alive = psutil.wait_procs(run.children, timeout=STOP_S)
        assert alive == []


def test_a_worker_that_dies_stops_everything_with_its_last_words(model_folder: Path, tmp_path: Path) -> None:
    """Status 1, the name of the dead one, the end of its log."""
    with _launched(tmp_path, "--model", str(model_folder), "--mixed", "1") as run:
        run.wait_ready()
        run.child("worker").kill()
        assert run.process.wait(STOP_S) == 1
        run.assert_nothing_is_left()
        assert "mixed-0 was ended by SIGKILL; its log ends:\n  | " in run.shown()


def test_a_model_with_a_missing_file_is_told_at_once(model_folder: Path, tmp_path: Path) -> None:
    """The worker's own message, not a timeout."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((model_folder / "config.json").read_text(encoding="utf-8"))
    with _launched(tmp_path, "--model", str(broken), "--start-timeout-s", "100000") as run:
        assert run.process.wait(START_S) == 1
        assert "tokenizer.json" in run.shown()
        assert "ended with status 2" in run.shown()


def test_a_taken_port_is_told_before_anything_starts(model_folder: Path, tmp_path: Path) -> None:
    """Port and flag are named; no log is made."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        with _launched(tmp_path, "--model", str(model_folder), "--port", port) as run:
            assert run.process.wait(START_S) == 2
            assert f"port {port} on 127.0.0.1 is taken; choose another with --port" in run.shown()
            assert not run.logs.exists()
