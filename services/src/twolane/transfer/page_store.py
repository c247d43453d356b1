"""The bytes of a worker's pages, in memory that other processes of the host can read.

The engine's KV tensor lies on this memory, so a peer that lands pages copies them once, straight
from the writer's pool into its own. The segment is an anonymous file (memfd): nothing is left in
the file system, however the process ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twolane.core.errors import Incompatible

PageBytes = npt.NDArray[np.uint8]


class PageStore:
    """This worker's pages as an array of bytes, [n_pages, page_bytes] uint8, writable.

    The memory must outlive every view of it, the engine's tensor included: call `close` last.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._map: mmap.mmap | None = None
        self.pages: PageBytes = np.empty((0, 0), dtype=np.uint8)
        self.segment = ""

    def allocate(self, size_bytes: int) -> memoryview:
        """Reserves the pool's memory; called once, by the engine while it loads."""
        self._fd = os.memfd_create("twolane-pages", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size_bytes)
        self._map = mmap.mmap(self._fd, size_bytes)
        self.segment = f"{os.getpid()}:{self._fd}:{secrets.token_hex(8)}"
        return memoryview(self._map)

    def divide(self, n_pages: int) -> None:
        """Tells how many pages the memory holds, once the engine has fixed their size."""
        if self._map is None:
            raise Incompatible("the page store has no memory yet; allocate it before dividing it")
        self.pages = np.frombuffer(self._map, dtype=np.uint8).reshape(n_pages, -1)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return int(self.pages.shape[1])

    def close(self) -> None:
        """Lets go of the descriptor; the mapping goes with the last view of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PeerSegments:
    """Other workers' segments, opened read-only at their first use and kept until `forget`."""

    def __init__(self) -> None:
        self._open: dict[str, PageBytes] = {}

    def bytes_of(self, segment: str) -> PageBytes:
        """All bytes of a peer's segment, read-only.

        Raises:
            Incompatible: the segment can't be opened from here: another host or PID namespace, or
                its process has ended.
        """
        if segment not in self._open:
            self._open[segment] = _map_segment(segment)
        return self._open[segment]

    def forget(self, segment: str) -> None:
        """Closes a segment; unknown ones are ignored."""
        self._open.pop(segment, None)


def _map_segment(segment: str) -> PageBytes:
    pid, fd, _nonce = segment.split(":")
    path = f"/proc/{int(pid)}/fd/{int(fd)}"
    try:
        if "memfd:twolane-pages" not in os.readlink(path):
            raise Incompatible(f"{path} is no page segment: its process has ended")
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except OSError as error:
        raise Incompatible(f"cannot open the peer's shared memory {path}: {error.strerror}") from error


def host_id() -> str:
    """Names the place in which segments can be shared: one machine, boot and PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
