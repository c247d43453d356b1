"""Command line of the test clusters: `PYTHONPATH=. python -m deploy.cluster build|up|node-up`.

`build` builds the named programs, or all, and prints where each lies; `up` starts a control plane with one
node of kwok's, `node-up` one with two real nodes (as root). Both print a kubeconfig and end on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.cluster.binaries import PROGRAMS, BuildError, ensure
from deploy.cluster.control_plane import ControlPlane, kwok_node
from deploy.cluster.processes import StartError
from deploy.cluster.real_cluster import IMAGE, RealCluster


def build(names: list[str]) -> None:
    """Builds programs and prints where each lies."""
    for name in names or list(PROGRAMS):
        began = time.monotonic()
        path = ensure(name)[name]
        print(f"{name}: {path} ({time.monotonic() - began:.0f} s)", flush=True)


def up() -> None:
    """Runs a control plane until it is interrupted."""
    with tempfile.TemporaryDirectory(prefix="twolane-cluster-") as folder:
        plane = ControlPlane(Path(folder))
        try:
            plane.start()
            kubectl = [str(ensure("kubectl")["kubectl"]), "--kubeconfig", str(plane.kubeconfig)]
            subprocess.run([*kubectl, "apply", "-f", "-"], input=kwok_node("node-a").encode(), check=True)
            print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        finally:
            plane.stop()


def node_up() -> None:
    """Runs a cluster of real nodes until it is interrupted."""
    cluster = RealCluster()
    cluster.start()
    try:
        print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        print(f"# image: {IMAGE}; logs: {cluster.folder}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        cluster.stop()


def main() -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deploy.cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build").add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROGRAMS))
    verbs.add_parser("up")
    verbs.add_parser("node-up")
    chosen = parser.parse_args()
    # Both ends of `up` are orderly.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        match chosen.verb:
            case "build":
                build(chosen.names)
            case "up":
                up()
            case _:
                node_up()
    except (BuildError, StartError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
