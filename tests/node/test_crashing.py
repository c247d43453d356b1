"""A cluster whose program is killed leaves no process, mount or interface; the next one removes its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.cluster import host
from deploy.cluster.network import wire_of
from tests.node.product import GIVEN
from tests.operator.cluster.kube import ROOT, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]


def _processes(words: str) -> list[str]:
    """Command lines with the words, of processes that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(line)
    return found


@pytest.mark.skipif(bool(GIVEN) or bool(host.refusal()), reason="no cluster of our own here")
def test_a_killed_cluster_leaves_nothing() -> None:
    """SIGKILL, the worst of all ends."""
    command = [sys.executable, "-m", "deploy.cluster", "node-up"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert "KUBECONFIG=" in child.stdout.readline()
        mine = f"twolane-node-{child.pid}"
        assert len(_processes(mine)) > 8
        assert host.leftovers(child.pid)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    eventually(lambda: not _processes(mine))
    eventually(lambda: not Path("/sys/class/net", wire_of(child.pid)).exists())
    host.sweep(Path(tempfile.gettempdir()))
    eventually(lambda: not host.leftovers(child.pid))
