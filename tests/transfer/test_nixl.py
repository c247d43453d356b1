"""Pages by NIXL, between two agents; a worker that was not told to use it never loads it."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.transfer.test_transports import N_PAGES, filled_store
from twolane.core.errors import ConfigError, LeaseInvalid, WorkerLost
from twolane.transfer.landing import ExpectedPages, Landing
from twolane.transfer.nixl_codec import NixlCodec
from twolane.transfer.page_store import Layers, PageStore
from twolane.v1 import transfer_pb2 as pb

ALL = Layers(0, 4)


class Agent:
    """A store and its agent."""

    def __init__(self, seed: int) -> None:
        self.store: PageStore = filled_store(seed)
        self.store.divide(N_PAGES, n_layers=4)
        self.codec = NixlCodec(self.store)


@pytest.fixture(scope="module")
def agents() -> Iterator[tuple[Agent, Agent]]:
    """A writer and an owner; agents take a while to start."""
    made = Agent(1), Agent(2)
    yield made
    for agent in made:
        agent.codec.close()


def landing_of(owner: Agent, page_ids: tuple[int, ...]) -> Landing:
    """The owner's landing with one lease "l" on these pages."""
    codecs = {pb.TRANSPORT_NIXL: owner.codec}
    landing = Landing(owner.store, codecs, lambda: 0.0, lambda *_: None, lambda *_: None)
    lease = pb.Lease(lease_id="l", request_id="r", fence=1, transport=pb.TRANSPORT_NIXL)
    landing.expect(ExpectedPages(lease, page_ids, 7, expires_s=1.0))
    return landing


@pytest.mark.parametrize("layers", [ALL, Layers(1, 2)])
@pytest.mark.parametrize("source_ids", [[0, 1, 2], [5, 2, 3]])
async def test_pages_arrive_bit_for_bit(
    agents: tuple[Agent, Agent], layers: Layers, source_ids: list[int]
) -> None:
    """Whole pages and layers of them, neighbours or not."""
    writer, owner = agents
    expected = owner.store.pages.copy().reshape(N_PAGES, 4, -1)
    theirs = writer.store.pages.reshape(N_PAGES, 4, -1)
    part = slice(layers.first, layers.first + layers.count)
    expected[[7, 4, 5], part] = theirs[source_ids, part]
    landing = landing_of(owner, (7, 4, 5))
    for packed in writer.codec.pack(source_ids, [7, 4, 5], layers):
        ack = await landing.take(pb.PagePush(lease_id="l", fence=1, run=packed.run))
        assert ack.error.message == ""
    np.testing.assert_array_equal(owner.store.pages.reshape(N_PAGES, 4, -1), expected)


async def test_bytes_that_come_after_the_lease_do_not_land(agents: tuple[Agent, Agent]) -> None:
    """The lease ends while the read is under way: its pages may belong to another request."""
    writer, owner = agents
    landing = landing_of(owner, (6,))
    (packed,) = writer.codec.pack([0], [6], ALL)
    taking = asyncio.create_task(landing.take(pb.PagePush(lease_id="l", fence=1, run=packed.run)))
    fetch = owner.codec.fetch

    async def slow(run: pb.PageRun) -> object:
        data = await fetch(run)
        landing.close("l")
        return data

    owner.codec.fetch = slow  # type: ignore[assignment, method-assign]
    before = owner.store.pages.copy()
    try:
        assert (await taking).error.code == "lease_invalid"
    finally:
        del owner.codec.fetch
    np.testing.assert_array_equal(owner.store.pages, before)


async def test_a_damaged_run_is_refused(agents: tuple[Agent, Agent]) -> None:
    """A checksum that came along is checked before the pages are touched."""
    writer, owner = agents
    (packed,) = writer.codec.pack([0], [1], ALL)
    packed.run.checksum = 1
    with pytest.raises(LeaseInvalid, match="checksum"):
        owner.codec.put(packed.run, await owner.codec.fetch(packed.run))


async def test_an_unknown_peer_is_lost(agents: tuple[Agent, Agent]) -> None:
    """Metadata of nobody end the run, not the worker."""
    writer, owner = agents
    (packed,) = writer.codec.pack([0], [1], ALL)
    packed.run.nixl.agent, packed.run.nixl.metadata = "nobody", b"noise"
    with pytest.raises(WorkerLost):
        await owner.codec.fetch(packed.run)


def test_without_the_package_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"twolane\[nixl\]"):
        NixlCodec(filled_store(1))


def test_a_worker_does_not_load_it_unless_told() -> None:
    """The package is large and optional."""
    script = "import sys, twolane.worker.process; print([m for m in sys.modules if 'nixl' in m])"
    found = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=60)
    assert found.strip() == "[]"
