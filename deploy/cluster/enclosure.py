"""Linux namespaces that hold the network of a cluster, and each of its nodes as a machine of its own.

When the caller ends, however it ends, the kernel ends what holds the namespaces, and with it every
process, mount, interface and packet filter inside. `real_cluster` starts them.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from deploy.cluster.processes import Process, StartError

START_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0


class Enclosure:
    """A network namespace, and for a node also mounts and processes of its own.

    Attributes:
        name: what messages call it.
        folder: where its files lie; it exists.
    """

    def __init__(self, name: str, folder: Path, setup: str | None = None) -> None:
        """Nothing starts yet.

        Args:
            name: what messages call it.
            folder: where its files lie.
            setup: shell commands for the first process of a namespace with own mounts and processes;
                None for a network namespace alone.
        """
        self.name, self.folder = name, folder
        self._whole = setup is not None
        command = ["unshare", "--net", "sleep", "infinity"]
        if setup is not None:
            # Adopts and reaps what containers leave behind, as the first process of a machine does.
            script = f"set -e\n{setup}\ntouch {self._ready}\nwhile :; do sleep 3600 & wait $!; done\n"
            (folder / "init.sh").write_text(script, encoding="utf-8")
            command = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork"]
            command += ["--kill-child=KILL", "bash", str(folder / "init.sh")]
        # unshare holds SIGTERM back while it waits for its child.
        self._holder = Process(
            f"{name}-holder", command, folder, ends_by=signal.SIGKILL, entered=setup is not None
        )

    @property
    def _ready(self) -> Path:
        return self.folder / "ready"

    @property
    def pid(self) -> int:
        """The process that holds the namespaces."""
        return self._holder.pid

    def start(self) -> None:
        """Makes the namespaces.

        Raises:
            StartError: this machine refuses.
        """
        self._ready.unlink(missing_ok=True)
        self._holder.start()
        self._holder.wait_for(self._is_up, START_TIMEOUT_S)
        self.run("ip", "link", "set", "lo", "up")
        self.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def _is_up(self) -> bool:
        if self._whole:
            return self._ready.exists()
        own, other = (Path(f"/proc/{pid}/ns/net") for pid in ("self", self._holder.pid))
        return own.readlink() != other.readlink()

    def stop(self) -> None:
        """Ends everything inside."""
        self._holder.stop()

    def enter(self) -> list[str]:
        """The command that starts a program inside; a node's waits for it and passes no signal on."""
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        if self._whole:
            command = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid"]
        return [*command, "--"]

    def process(self, name: str, *command: str) -> Process:
        """A program that runs inside until it is stopped."""
        return Process(name, [*self.enter(), *command], self.folder, entered=self._whole)

    def run(self, *command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Runs a program inside and returns what it prints.

        Raises:
            StartError: it failed or took too long.
        """
        return run(*self.enter(), *command, timeout_s=timeout_s)


def run(*command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Runs a program on this machine and returns what it prints.

    Raises:
        StartError: it failed or took too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"`{' '.join(command)}`: {error}") from error
    if done.returncode:
        raise StartError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout
