"""Command line of the test control plane: `python -m deploy.cluster build [NAME ...]`."""

from __future__ import annotations

import sys
import time

from deploy.cluster.binaries import PROGRAMS, BuildError, ensure


def build(names: list[str]) -> int:
    """Builds the named programs, or all, and prints where each lies."""
    for name in names or list(PROGRAMS):
        began = time.monotonic()
        try:
            path = ensure(name)[name]
        except BuildError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {path} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(build(sys.argv[2:]))
