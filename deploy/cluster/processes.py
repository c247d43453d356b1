"""Programs of the control plane as child processes: started, waited for with a deadline, ended by pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
# Loaded here: a child between fork and exec must not load anything.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class StartError(RuntimeError):
    """A program ended early or did not answer in time; the message has the end of its log."""


class Process:
    """One running program; its output goes to a file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log_folder: Path,
        *,
        ends_by: signal.Signals = signal.SIGTERM,
        entered: bool = False,
    ) -> None:
        """Nothing starts yet.

        Args:
            name: what messages call it; its log is `<name>.log`.
            command: program and arguments.
            log_folder: where its output goes.
            ends_by: signal that ends it.
            entered: the command is nsenter, which waits for the program itself and passes no signal on.
        """
        self.name = name
        self.log = log_folder / f"{name}.log"
        self._command = command
        self._ends_by = ends_by
        self._entered = entered
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; a program that runs already is left alone."""
        if self.running:
            return
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C is for the caller, which then ends it in order.
            self._child = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # It makes one system call and takes no lock.
                preexec_fn=_end_with_caller,  # noqa: PLW1509
            )

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def wait_for(self, answers: Callable[[], bool], timeout_s: float) -> None:
        """Returns once `answers` is true.

        Raises:
            StartError: the program ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not answers():
            if not self.running:
                raise StartError(f"{self.name} ended early; its last words:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not answer within {timeout_s:.0f} s:\n{self._tail()}")
            time.sleep(POLL_S)

    @property
    def pid(self) -> int:
        """Process id of the program, as this process sees it.

        Raises:
            StartError: it does not run.
        """
        if self._child is not None and self._child.poll() is None:
            if not self._entered:
                return self._child.pid
            if children := children_of(self._child.pid):
                return children[0]
        raise StartError(f"{self.name} does not run; its last words:\n{self._tail()}")

    def stop(self, timeout_s: float = 20.0, number: signal.Signals | None = None) -> None:
        """Ends it, with SIGKILL when the time is over."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError, StartError):
            os.kill(self.pid, number or self._ends_by)
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, StartError):
                os.kill(self.pid, signal.SIGKILL)
            self._child.kill()
            self._child.wait(timeout_s)
        self._child = None

    def _tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _end_with_caller() -> None:
    """Asks the kernel to kill this program when its caller is gone: then nobody needs an orderly end."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process; empty when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
