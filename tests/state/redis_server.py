"""A real redis-server on a free local port in a folder of its own; used by the state and broker tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

HOW_TO_INSTALL = (
    "redis-server is missing: install it (Debian: apt-get install redis-server) to run these tests"
)
_START_DEADLINE_S = 20.0


class RedisServer:
    """Starts, kills and restarts one server; `url` stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError(HOW_TO_INSTALL)
        self._binary = binary
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, keep_data: bool = False, password: str = "") -> None:
        """Starts the server; `keep_data` makes it write every command to disk and read it back."""
        append = "yes" if keep_data else "no"
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        disk = ["--save", "", "--appendonly", append, "--appendfsync", "always"]
        guard = ["--requirepass", password] if password else []
        self._process = subprocess.Popen(
            [self._binary, *where, *disk, *guard, "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kills the server at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
