"""The router's copy of the prefix index: which worker has which page cached.

`cluster.py` feeds it with the broker's changes; placement asks how much of a prompt each worker has.
One bit per worker and page hash makes that one walk over the prompt's pages for all workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PrefixIndex:
    """Page hash to workers."""

    def __init__(self) -> None:
        self._workers_of: dict[bytes, int] = {}
        self._pages_of: dict[str, set[bytes]] = {}
        self._bit_of: dict[str, int] = {}
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        """Pairs of worker and cached page."""
        return sum(len(pages) for pages in self._pages_of.values())

    def add(self, worker_id: str, hashes: Iterable[bytes]) -> None:
        """Pages entered a worker's cache."""
        mask = 1 << self._bit(worker_id)
        pages = self._pages_of[worker_id]
        for page in hashes:
            pages.add(page)
            self._workers_of[page] = self._workers_of.get(page, 0) | mask

    def remove(self, worker_id: str, hashes: Iterable[bytes]) -> None:
        """Pages left a worker's cache; unknown ones are ignored."""
        pages = self._pages_of.get(worker_id)
        if pages is None:
            return
        mask = 1 << self._bit_of[worker_id]
        for page in hashes:
            if page in pages:
                pages.remove(page)
                self._clear(page, mask)

    def drop(self, worker_id: str) -> None:
        """A worker is gone, or came back with an empty cache."""
        pages = self._pages_of.pop(worker_id, None)
        if pages is None:
            return
        bit = self._bit_of.pop(worker_id)
        for page in pages:
            self._clear(page, 1 << bit)
        self._free_bits.append(bit)

    def clear(self) -> None:
        """Forgets everything."""
        self._workers_of.clear()
        self._pages_of.clear()
        self._bit_of.clear()
        self._free_bits.clear()

    def cached_pages(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading pages of a prompt that each worker has cached; workers without any are left out."""
        found: dict[str, int] = {}
        alive = -1
        names = {bit: worker_id for worker_id, bit in self._bit_of.items()}
        for count, page in enumerate(hashes):
            still = self._workers_of.get(page, 0) & alive
            if still != alive and count:
                _note(found, names, alive & ~still, count)
            alive = still
            if not alive:
                return found
        if hashes:
            _note(found, names, alive, len(hashes))
        return found

    def _bit(self, worker_id: str) -> int:
        bit = self._bit_of.get(worker_id)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else len(self._bit_of)
            self._bit_of[worker_id] = bit
            self._pages_of[worker_id] = set()
        return bit

    def _clear(self, page: bytes, mask: int) -> None:
        rest = self._workers_of[page] & ~mask
        if rest:
            self._workers_of[page] = rest
        else:
            del self._workers_of[page]


def _note(found: dict[str, int], names: dict[int, str], mask: int, count: int) -> None:
    while mask:
        bit = (mask & -mask).bit_length() - 1
        found[names[bit]] = count
        mask &= mask - 1
