"""Pages by NIXL: the receiver reads the sender's registered memory, by RDMA where there is any.

Needs the extra `nixl`; nothing here is imported by a worker that was not told to use it. A read takes time
during which its lease may end, so bytes come into memory of our own and enter pages only after a last check.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from twolane.core.errors import ConfigError, Incompatible, WorkerLost
from twolane.transfer.page_store import Layers, PageBytes, PageStore, joined
from twolane.transfer.transports import (
    Packed,
    SampledChecksum,
    check_size,
    damaged,
    digest,
    layers_of,
    page_run,
    run_bytes,
    slices,
)
from twolane.v1 import transfer_pb2 as pb

log = logging.getLogger(__name__)

# One wheel a CUDA version; without a device they do the same.
PACKAGES = ("nixl_cu13", "nixl_cu12")
MAX_READ_BYTES = 16 << 20
READ_TIMEOUT_S = 10.0
DRAM = "DRAM"


def load_api() -> Any:
    """NIXL's Python module.

    Raises:
        ConfigError: it is not installed.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(f"{name}._api")
    raise ConfigError("NIXL is asked for but not installed: pip install 'twolane[nixl]'", param="nixl")


class NixlCodec:
    """One worker's NIXL agent, with its pool and its landing memory registered."""

    def __init__(self, store: PageStore) -> None:
        """Creates the agent, which takes about a second.

        Raises:
            ConfigError: NIXL is not installed or can't start.
        """
        api = load_api()
        self._store = store
        self._checksum = SampledChecksum()
        self.name = f"twolane-{secrets.token_hex(8)}"
        self._landing_memory: PageBytes = np.empty(max(MAX_READ_BYTES, store.page_bytes), dtype=np.uint8)
        try:
            self._agent = api.nixl_agent(self.name, api.nixl_agent_config(backends=["UCX"]))
            whole = [_span(store.pages.reshape(-1)), _span(self._landing_memory)]
            self._registered = self._agent.register_memory([(*each, "") for each in whole], DRAM)
            self._metadata: bytes = self._agent.get_agent_metadata()
        except Exception as error:
            raise ConfigError(f"NIXL can't start here: {error}", param="nixl") from error
        self._peers: set[str] = set()
        # One read at a time: there is one landing memory.
        self._in_turn = asyncio.Lock()

    def pack(self, source_ids: Sequence[int], target_ids: Sequence[int], layers: Layers) -> Iterator[Packed]:
        """See TransportCodec."""
        store, columns = self._store, self._store.columns(layers)
        base = store.pages.ctypes.data + columns.start
        for sources, targets in slices(store, source_ids, target_ids, layers, MAX_READ_BYTES):
            run = page_run(targets, layers, self._checksum.of(store, sources, layers))
            run.nixl.agent = self.name
            run.nixl.metadata = self._metadata
            run.nixl.addresses.extend(base + page_id * store.page_bytes for page_id in sources)
            run.nixl.length_bytes = columns.stop - columns.start
            yield Packed(run)

    def land(self, run: pb.PageRun) -> None:
        """See TransportCodec: bytes that have to be fetched can't be landed at once."""
        raise Incompatible("a run by NIXL came where nobody waits for a read")

    async def fetch(self, run: pb.PageRun) -> PageBytes:
        """Reads a run's bytes from the peer; see FetchingCodec."""
        place = run.nixl
        layers_of(self._store, run)
        expected = run_bytes(self._store, run)
        check_size(run, "nixl", place.length_bytes * len(place.addresses), expected)
        if expected > len(self._landing_memory):
            raise Incompatible(f"a run of {expected} bytes by NIXL, at most {len(self._landing_memory)} go")
        async with self._in_turn:
            await self._read(place)
            # A copy of its own: the next read may begin before this one's bytes are in pages.
            return self._landing_memory[:expected].copy()

    def put(self, run: pb.PageRun, data: PageBytes) -> None:
        """Puts fetched bytes into pages; see FetchingCodec."""
        if run.checksum and digest([data.data]) != run.checksum:
            raise damaged()
        columns = self._store.columns(layers_of(self._store, run))
        pieces = data.reshape(len(run.page_ids), -1)
        numbers = range(len(run.page_ids))
        for first, target, n in joined(numbers, list(run.page_ids)):
            self._store.pages[target : target + n, columns] = pieces[first : first + n]

    def close(self) -> None:
        """Gives the registered memory back."""
        self._agent.deregister_memory(self._registered)

    async def _read(self, place: pb.NixlRange) -> None:
        length = place.length_bytes
        remote, local, at = [], [], self._landing_memory.ctypes.data
        # Neighbours are read as one.
        slots = [address // length if length else 0 for address in place.addresses]
        aligned = all(address % length == place.addresses[0] % length for address in place.addresses)
        spans = joined(slots, slots) if aligned else ((0, i, 1) for i in range(len(slots)))
        done = 0
        for _first, _same, n in spans:
            remote.append((place.addresses[done], length * n, 0))
            local.append((at + done * length, length * n, 0))
            done += n
        try:
            if place.agent not in self._peers:
                self._agent.add_remote_agent(place.metadata)
                self._peers.add(place.agent)
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(local, DRAM),
                self._agent.get_xfer_descs(remote, DRAM),
                place.agent,
            )
            try:
                await self._wait(handle)
            finally:
                handle.release()
        except WorkerLost:
            raise
        except Exception as error:
            self._peers.discard(place.agent)
            raise WorkerLost(f"reading pages by NIXL failed: {error}") from error

    async def _wait(self, handle: Any) -> None:
        state, deadline_s = self._agent.transfer(handle), time.monotonic() + READ_TIMEOUT_S
        while state == "PROC":
            if time.monotonic() > deadline_s:
                raise WorkerLost(f"a read by NIXL took more than {READ_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0)
            state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise WorkerLost(f"a read by NIXL ended as {state}")


def _span(memory: PageBytes) -> tuple[int, int, int]:
    return int(memory.ctypes.data), memory.nbytes, 0
