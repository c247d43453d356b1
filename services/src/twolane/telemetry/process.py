"""What a process tells its starter and hears from it: bound ports out, the wish to stop in.

Every process's `main` uses it; the local launcher reads the port file.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from twolane.core.errors import ConfigError

LAUNCHER_FD = "TWOLANE_LAUNCHER_FD"
"""Names the pipe whose end tells a child that its launcher has gone (see cli.orphan)."""


def write_port_file(path: str | Path, ports: Mapping[str, int]) -> None:
    """Writes {"grpc": 9200, "http": 9400} in one step: a reader sees all of it or nothing.

    Raises:
        ConfigError: the folder is missing or not writable.
    """
    target = Path(path)
    # One writer per file, so the process id makes the name free.
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(dict(ports)), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"can't write the port file {target}: {error.strerror or error}"
        raise ConfigError(reason, param="port_file") from error


def read_port_file(path: str | Path) -> dict[str, int] | None:
    """The ports a process has bound, or None while it has not written them."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return {str(name): int(port) for name, port in json.loads(text).items()}


def stop_requested() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; a second signal of the kind kills as usual."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        event.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return event
