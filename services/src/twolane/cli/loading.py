"""Reads from a worker's log how far it is with loading its model.

The log is the only thing the launcher has of a worker before that can be contacted; progress.py shows
what stands in its last line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LAST_BYTES = 4096


def loading_stage(log_path: Path) -> str:
    """The stage of the last log line, with its share done, such as "load weights 43%"; "" if none."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = log.read().splitlines()
    except OSError:
        return ""
    record = _record(lines[-1]) if lines else {}
    stage, done, total = record.get("stage"), record.get("done_bytes"), record.get("total_bytes")
    if not isinstance(stage, str):
        return ""
    if isinstance(done, int) and isinstance(total, int) and total > 0:
        return f"{stage} {100 * done // total}%"
    return stage


def _record(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        # A traceback, or a line that is being written.
        return {}
    return value if isinstance(value, dict) else {}
