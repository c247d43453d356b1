"""Stops a child process whose launcher has gone, however it went.

The launcher keeps the write end of a pipe; each child reads the other end, which gives end-of-file
even after `kill -9` of the launcher. Called at the start of every `twolane` verb.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from twolane.telemetry.process import LAUNCHER_FD

GRACE_S = 10.0


def watch_launcher() -> None:
    """Starts the watch if this process is a launcher's child; does nothing otherwise."""
    # Taken out of the environment: a grandchild doesn't hold the pipe.
    number = os.environ.pop(LAUNCHER_FD, "")
    if not number.isdigit():
        return
    fd = int(number)
    os.set_inheritable(fd, False)
    threading.Thread(target=_wait_for_end, args=(fd,), name="launcher-watch", daemon=True).start()


def _wait_for_end(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # The process had its time to release shared memory and leases; now its whole group ends.
    time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)
