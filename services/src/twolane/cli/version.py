"""Prints the version of the installed distribution; `twolane version` and `twolane --version` call it."""

from __future__ import annotations

import platform
from importlib.metadata import version


def main(argv: list[str]) -> int:
    """Prints one line: our version and Python's."""
    del argv
    print(f"twolane {version('twolane')} (Python {platform.python_version()})")
    return 0
