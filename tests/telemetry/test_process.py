"""Port files appear whole or not at all; signals set the event once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from twolane.core.errors import ConfigError
from twolane.telemetry.process import read_port_file, stop_requested, write_port_file


def test_a_port_file_is_read_as_written(tmp_path: Path) -> None:
    """None before it is there; written again it is replaced; nothing else is left in the folder."""
    path = tmp_path / "ports.json"
    assert read_port_file(path) is None
    write_port_file(path, {"grpc": 1, "http": 2})
    assert read_port_file(path) == {"grpc": 1, "http": 2}
    write_port_file(str(path), {"grpc": 3})
    assert read_port_file(path) == {"grpc": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_a_port_file_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    """The folder is missing, or the path is a folder; no temporary file stays."""
    with pytest.raises(ConfigError, match=r"missing/ports\.json"):
        write_port_file(tmp_path / "missing" / "ports.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        write_port_file(tmp_path / "folder", {})
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    """The first one is a wish; the handler for it is then gone."""
    stop = stop_requested()
    assert not stop.is_set()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 20)
    loop = asyncio.get_running_loop()
    assert not loop.remove_signal_handler(number)
    for other in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(other)
