"""One child process of the launcher: its command, its log, the ports it reports, its end.

`twolane up` starts every service through this. A child leads its own process group, so that Ctrl-C
in the terminal reaches the launcher alone and the launcher stops the children in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twolane.telemetry.process import LAUNCHER_FD, read_port_file

TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run.

    Attributes:
        name: what people see, "router" or "prefill-0".
        args: the `twolane` command line, verb first.
        log_path: where its stdout and stderr go.
        port_file: where it writes the ports it listens on, once it can be contacted.
        environment: added to the launcher's own.
    """

    name: str
    args: tuple[str, ...]
    log_path: Path
    port_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A started child."""

    def __init__(self, spec: ChildSpec, launcher_fd: int) -> None:
        """Starts it; `launcher_fd` is the read end of the pipe whose end tells of the launcher's death."""
        self.spec = spec
        spec.port_file.unlink(missing_ok=True)
        # Not the folder it was started in, but the installed package is what a child imports (-P).
        command = [sys.executable, "-P", "-m", "twolane.cli.main", *spec.args]
        environment = {**os.environ, **spec.environment, LAUNCHER_FD: str(launcher_fd)}
        with spec.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(launcher_fd,),
                process_group=0,
            )

    @property
    def name(self) -> str:
        """What people see."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        return self._process.pid

    def status(self) -> int | None:
        """None while it runs, else its exit status (negative: the signal that ended it)."""
        if self._process.returncode is not None:
            return self._process.returncode
        # WNOWAIT leaves it a zombie: until kill_group has run, nobody else can get its group's id.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def ports(self) -> dict[str, int] | None:
        """The ports it listens on by name ("grpc", "http"), or None until it can be contacted."""
        return read_port_file(self.spec.port_file)

    def terminate(self) -> None:
        """Asks it to stop; harmless when it has ended."""
        if self.status() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill_group(self) -> None:
        """Ends whatever is left of its process group, and reaps it."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of its log."""
        with self.spec.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
