"""Real children: their logs, their ports, and that they end with the launcher, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from twolane.cli.child import Child, ChildSpec, describe_status

DEADLINE_S = 60.0


def _broker(folder: Path, *flags: str) -> ChildSpec:
    ports = ("--port", "0", "--http-port", "0", "--port-file", str(folder / "ports.json"))
    return ChildSpec("broker", ("broker", *ports, *flags), folder / "broker.log", folder / "ports.json")


@pytest.fixture
def launcher_fd() -> Iterator[int]:
    """The end of the pipe that children read; the other end is open until the test is over."""
    read_fd, write_fd = os.pipe()
    yield read_fd
    os.close(read_fd)
    os.close(write_fd)


def _until(condition: Callable[[], object], what: str) -> None:
    """Waits for the condition to hold; fails at the deadline."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def test_a_child_reports_its_ports_and_stops_when_asked(tmp_path: Path, launcher_fd: int) -> None:
    """Ports first, then an orderly end with status 0."""
    child = Child(_broker(tmp_path), launcher_fd)
    try:
        _until(lambda: child.ports() or child.status() is not None, "the broker did not start")
        assert set(child.ports() or {}) == {"grpc", "http"}, child.last_lines()
        assert os.getpgid(child.pid) == child.pid
        child.terminate()
        _until(lambda: child.status() is not None, "the broker did not stop")
        assert child.status() == 0
    finally:
        child.kill_group()


def test_a_child_that_cannot_start_leaves_its_reason_in_the_log(tmp_path: Path, launcher_fd: int) -> None:
    """One line, status 2, no ports; an old port file is not mistaken for its own."""
    (tmp_path / "ports.json").write_text('{"grpc": 1}')
    child = Child(_broker(tmp_path, "--log-level", "LOUD"), launcher_fd)
    try:
        assert child.ports() is None
        _until(lambda: child.status() is not None, "the broker did not stop")
        assert child.status() == 2
        assert "LOUD" in child.last_lines(1)[0]
    finally:
        child.kill_group()


def test_a_killed_child_is_told_by_its_signal(tmp_path: Path, launcher_fd: int) -> None:
    """The launcher says what ended it."""
    child = Child(_broker(tmp_path), launcher_fd)
    os.kill(child.pid, signal.SIGKILL)
    _until(lambda: child.status() is not None, "SIGKILL did nothing")
    status = child.status()
    child.kill_group()
    assert status == child.status() == -signal.SIGKILL
    assert describe_status(-signal.SIGKILL) == "was ended by SIGKILL"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, launcher_fd: int) -> None:
    """A log may have grown for days."""
    spec = _broker(tmp_path)
    child = Child(spec, launcher_fd)
    child.kill_group()
    spec.log_path.write_bytes(b"x" * 10_000_000 + b"\nlast but one\nlast \xff\n")
    assert child.last_lines(2) == ["last but one", "last \ufffd"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_when_their_launcher_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    """Also by `kill -9`, which no handler sees."""
    launcher = (
        "import sys, time; from pathlib import Path; from twolane.cli.child import Child, ChildSpec\n"
        "import os; folder = Path(sys.argv[1]); read_fd, write_fd = os.pipe()\n"
        "args = ('broker', '--port', '0', '--http-port', '0', '--port-file', str(folder / 'ports.json'))\n"
        "child = Child(ChildSpec('broker', args, folder / 'log', folder / 'ports.json'), read_fd)\n"
        "print(child.pid, flush=True); time.sleep(120)\n"
    )
    command = [sys.executable, "-P", "-c", launcher, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        _until((tmp_path / "ports.json").exists, "the broker did not start")
        process.send_signal(how)
    child.wait(DEADLINE_S)
    assert not child.is_running()
