"""Which page of the KV pool belongs to whom: reference counts, names of full pages, reuse, eviction.

Pure bookkeeping without tensors. The worker allocates, matches, publishes and releases; the engine only reads
page numbers. Every page is in exactly one state: empty, held (references above zero) or cached (named, no
reference).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class OutOfPages(Exception):
    """Fewer pages are free than were asked for; nothing was taken. Callers wait, preempt or refuse."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} pages wanted, {free} free")
        self.wanted = wanted
        self.free = free


class PagePool:
    """Books of `n_pages` pages. Not thread-safe: one owner calls it."""

    def __init__(self, n_pages: int, page_tokens: int) -> None:
        if n_pages < 1 or page_tokens < 1:
            raise ValueError(f"a pool needs at least one page of one token, got {n_pages} of {page_tokens}")
        self.n_pages = n_pages
        self.page_tokens = page_tokens
        self._references = [0] * n_pages
        self._name_of: list[bytes | None] = [None] * n_pages
        self._page_of: dict[bytes, int] = {}
        # A stack: the page given back last is handed out first, its memory is likeliest to be warm.
        self._empty = list(range(n_pages - 1, -1, -1))
        # Least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}

    @property
    def empty(self) -> int:
        """Pages without content."""
        return len(self._empty)

    @property
    def cached(self) -> int:
        """Named pages nobody holds: reusable by `match`, evictable by `allocate`."""
        return len(self._cached)

    @property
    def free(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._empty) + len(self._cached)

    @property
    def held(self) -> int:
        """Pages with at least one reference."""
        return self.n_pages - self.free

    def allocate(self, n: int) -> list[int]:
        """Takes `n` pages with one reference each, empty ones first, then the least recently used cached
        ones.

        Raises:
            OutOfPages: fewer than `n` are free; nothing is taken.
        """
        if n < 0:
            raise ValueError(f"can't allocate {n} pages")
        if n > self.free:
            raise OutOfPages(n, self.free)
        page_ids = [self._empty.pop() if self._empty else self._evict() for _ in range(n)]
        for page_id in page_ids:
            self._references[page_id] = 1
        return page_ids

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Takes a reference on each page of the longest cached prefix of `hashes`; the pages in order."""
        page_ids = self._prefix(hashes)
        for page_id in page_ids:
            self._references[page_id] += 1
            self._cached.pop(page_id, None)
        return page_ids

    def peek(self, hashes: Sequence[bytes]) -> int:
        """How many pages `match` would return; takes nothing and leaves the order of eviction alone."""
        return len(self._prefix(hashes))

    def release(self, page_ids: Sequence[int]) -> None:
        """Drops one reference of each page; at zero, named pages become cached and others empty.

        Pages are given back last to first, so that the tail of a prefix is evicted before its head.

        Raises:
            ValueError: a page is not held that often; nothing is released.
        """
        dropped: dict[int, int] = {}
        for page_id in page_ids:
            dropped[page_id] = dropped.get(page_id, 0) + 1
            if dropped[page_id] > self._references[page_id]:
                raise ValueError(f"page {page_id} is released more often than it is held")
        for page_id in reversed(page_ids):
            self._references[page_id] -= 1
            if self._references[page_id] == 0:
                if self._name_of[page_id] is None:
                    self._empty.append(page_id)
                else:
                    self._cached[page_id] = None

    def publish(self, page_id: int, name: bytes) -> None:
        """Names a held, full page by its prefix hash, so that `match` finds it.

        When another page has the name already that one keeps it and this one stays without.

        Raises:
            ValueError: the page is not held, or has another name.
        """
        if self._references[page_id] == 0:
            raise ValueError(f"page {page_id} is not held, so its content can't be vouched for")
        known = self._name_of[page_id]
        if known is not None and known != name:
            raise ValueError(f"page {page_id} is named {known.hex()} and can't become {name.hex()}")
        if name in self._page_of:
            return
        self._name_of[page_id] = name
        self._page_of[name] = page_id
        if name in self._removed:
            del self._removed[name]
        else:
            self._added[name] = None

    def drain_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Names that appeared and that vanished since the last call; one that did both is in neither."""
        added, removed = list(self._added), list(self._removed)
        self._added.clear()
        self._removed.clear()
        return added, removed

    def names(self) -> list[bytes]:
        """Names of all pages that `match` can find."""
        return list(self._page_of)

    def check(self) -> None:
        """Audits the books. Raises AssertionError naming the first page whose state contradicts itself."""
        empty, cached = set(self._empty), set(self._cached)
        if len(empty) != len(self._empty) or empty & cached:
            raise AssertionError(f"a page is free twice: {sorted(self._empty)} and {sorted(cached)}")
        for page_id, references in enumerate(self._references):
            name = self._name_of[page_id]
            if references < 0:
                raise AssertionError(f"page {page_id} has {references} references")
            if (references == 0) != (page_id in empty or page_id in cached):
                raise AssertionError(
                    f"page {page_id} has {references} references and is free, or has none and isn't"
                )
            if (page_id in empty and name is not None) or (page_id in cached and name is None):
                raise AssertionError(f"page {page_id} is in the wrong free list for name {name!r}")
            if name is not None and self._page_of.get(name) != page_id:
                raise AssertionError(f"page {page_id} is named {name.hex()}, which leads elsewhere")
        if len(self._page_of) != sum(name is not None for name in self._name_of):
            raise AssertionError("a name leads to a page that does not carry it")
        if self._added.keys() & self._removed.keys() or not self._added.keys() <= self._page_of.keys():
            raise AssertionError("the list of changes contradicts the names")

    def _prefix(self, hashes: Sequence[bytes]) -> list[int]:
        page_ids = []
        for name in hashes:
            page_id = self._page_of.get(name)
            if page_id is None:
                break
            page_ids.append(page_id)
        return page_ids

    def _evict(self) -> int:
        page_id, _ = self._cached.popitem(last=False)
        name = self._name_of[page_id]
        if name is None:
            raise AssertionError(f"page {page_id} is cached without a name")
        self._name_of[page_id] = None
        del self._page_of[name]
        if name in self._added:
            del self._added[name]
        else:
            self._removed[name] = None
        return page_id
