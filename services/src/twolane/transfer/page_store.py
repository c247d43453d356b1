"""The bytes of a worker's pages, in memory that other processes of the host can read.

The engine's KV tensor lies on this memory, so a peer that lands pages copies them once, straight
from the writer's pool into its own. The segment is an anonymous file (memfd): nothing is left in
the file system, however the process ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twolane.core.errors import Incompatible

PageBytes = npt.NDArray[np.uint8]

# Segments of this process: workers that share it read each other's pages without a mapping.
_HERE: weakref.WeakValueDictionary[str, PageStore] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Layers:
    """A range of layers; a page's bytes for it lie side by side."""

    first: int
    count: int


class PageMemory(Protocol):
    """A worker's pages, wherever they lie, as the transports see them.

    Attributes:
        n_layers: layers of a page.
    """

    n_layers: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        ...

    def source(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """The bytes of pages in the order given, to be read until the caller drops them."""
        ...

    def target(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """Buffers to fill with the bytes of pages in the order given; `landed` completes them."""
        ...

    def landed(self, page_ids: Sequence[int], layers: Layers, buffers: Sequence[memoryview]) -> None:
        """The buffers of `target` are full: their bytes are the pages' from now on."""
        ...


class PageStore:
    """This worker's pages as an array of bytes, [n_pages, page_bytes] uint8, writable.

    The memory must outlive every view of it, the engine's tensor included: call `close` last.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._map: mmap.mmap | None = None
        self.pages: PageBytes = np.empty((0, 0), dtype=np.uint8)
        self.segment = ""
        self.n_layers = 1

    def allocate(self, size_bytes: int) -> memoryview:
        """Reserves the pool's memory; called once, by the engine while it loads."""
        self._fd = os.memfd_create("twolane-pages", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size_bytes)
        self._map = mmap.mmap(self._fd, size_bytes)
        self.segment = f"{os.getpid()}:{self._fd}:{secrets.token_hex(8)}"
        _HERE[self.segment] = self
        return memoryview(self._map)

    def divide(self, n_pages: int, n_layers: int = 1) -> None:
        """Tells how many pages of how many layers the memory holds, once the engine has fixed it."""
        if self._map is None:
            raise Incompatible("the page store has no memory yet; allocate it before dividing it")
        self.pages = np.frombuffer(self._map, dtype=np.uint8).reshape(n_pages, -1)
        self.n_layers = n_layers

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return int(self.pages.shape[1])

    def columns(self, layers: Layers) -> slice:
        """Where the layers lie within each page."""
        size = self.page_bytes // self.n_layers
        return slice(layers.first * size, (layers.first + layers.count) * size)

    def source(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: views of the pages, neighbours joined."""
        if layers.count == self.n_layers:
            flat, size = self.pages.reshape(-1), self.page_bytes
            spans = joined(page_ids, page_ids)
            return [flat[first * size : (first + n) * size].data for first, _same, n in spans]
        columns = self.columns(layers)
        return [self.pages[page_id, columns].data for page_id in page_ids]

    def target(self, page_ids: Sequence[int], layers: Layers) -> list[memoryview]:
        """See PageMemory: views of the pages, so that what arrives is where it belongs."""
        return self.source(page_ids, layers)

    def landed(self, page_ids: Sequence[int], layers: Layers, buffers: Sequence[memoryview]) -> None:
        """See PageMemory: nothing is left to do."""

    def close(self) -> None:
        """Lets go of the descriptor; the mapping goes with the last view of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PeerSegments:
    """Other workers' segments, opened read-only at their first use and kept while their process lives."""

    def __init__(self) -> None:
        self._open: dict[str, PageBytes] = {}

    def bytes_of(self, segment: str) -> PageBytes:
        """All bytes of a peer's segment, read-only.

        Raises:
            Incompatible: the segment can't be opened from here: another host or PID namespace, or
                its process has ended.
        """
        if segment not in self._open:
            # A mapping keeps the memory of a process that has ended: a peer that restarts must not add up.
            for ended in [known for known in self._open if not _lives(known)]:
                self.forget(ended)
            here = _HERE.get(segment)
            self._open[segment] = _map_segment(segment) if here is None else here.pages.reshape(-1)
        return self._open[segment]

    def forget(self, segment: str) -> None:
        """Closes a segment; unknown ones are ignored."""
        self._open.pop(segment, None)


def joined(first_ids: Sequence[int], second_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Pairs of page numbers as (first, second, length) runs in which both grow by one."""
    start = 0
    for end in range(1, len(first_ids) + 1):
        length = end - start
        follows = (
            end < len(first_ids)
            and first_ids[end] == first_ids[start] + length
            and second_ids[end] == second_ids[start] + length
        )
        if not follows:
            yield first_ids[start], second_ids[start], length
            start = end


def _place(segment: str) -> str:
    pid, fd, _nonce = segment.split(":")
    return f"/proc/{int(pid)}/fd/{int(fd)}"


def _lives(segment: str) -> bool:
    try:
        return "memfd:twolane-pages" in os.readlink(_place(segment))
    except OSError:
        return False


def _map_segment(segment: str) -> PageBytes:
    path = _place(segment)
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
