"""Pages whose heads lie on several ranks leave and arrive whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from twolane.core.errors import WorkerLost
from twolane.transfer import sharded_store
from twolane.transfer.device_store import DeviceStore
from twolane.transfer.page_store import Layers
from twolane.transfer.sharded_store import ShardedStore, ShardServer
from twolane.transfer.transports import InlineCodec

PAGES, LAYERS, HEADS, TOKENS, DIM = 6, 3, 8, 4, 2
TIMEOUT_S = 10.0


class Ranks:
    """A pool of all heads, and the same pages split over ranks that serve their parts."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        torch.manual_seed(size)
        self.whole = torch.randn(PAGES, LAYERS, 2, HEADS, TOKENS, DIM).to(dtype)
        self.parts = [part.contiguous() for part in self.whole.chunk(size, dim=3)]
        self.over = threading.Event()
        self.over.set()
        self.waited_for: list[int] = []
        stores = [DeviceStore(part) for part in self.parts]
        self.servers = [ShardServer(store, "127.0.0.1", self._wait, TIMEOUT_S) for store in stores[1:]]
        self.store = ShardedStore(stores[0], [s.place for s in self.servers], lambda: 7, TIMEOUT_S)

    def joined(self) -> torch.Tensor:
        """The pages of all ranks side by side."""
        return torch.cat(self.parts, dim=3)

    def close(self) -> None:
        """Ends all."""
        self.store.close()
        for server in self.servers:
            server.close()

    def _wait(self, steps: int, timeout_s: float) -> bool:
        self.waited_for.append(steps)
        return self.over.wait(timeout_s)


@pytest.fixture
def made() -> Iterator[list[Ranks]]:
    """Closes what a test puts in."""
    all_ranks: list[Ranks] = []
    yield all_ranks
    for ranks in all_ranks:
        ranks.close()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [Layers(0, LAYERS), Layers(1, 1)])
def test_pages_go_from_ranks_to_ranks_of_another_number(
    made: list[Ranks], size: int, dtype: torch.dtype, layers: Layers
) -> None:
    """All layers or some; every byte where a pool of all heads has it, others untouched."""
    source, target = Ranks(size, dtype), Ranks(3 - size if size < 3 else 2, dtype)
    made += [source, target]
    assert source.store.page_bytes == target.store.page_bytes == DeviceStore(source.whole).page_bytes
    before = target.joined().clone()
    runs = list(InlineCodec(source.store).pack([4, 0, 5], [1, 3, 2], layers))
    for packed in runs:
        InlineCodec(target.store).land(packed.run)
    chosen = slice(layers.first, layers.first + layers.count)
    before[[1, 3, 2], chosen] = source.whole[[4, 0, 5], chosen]
    assert torch.equal(target.joined(), before)


def test_ranks_are_asked_only_for_what_they_have_computed(made: list[Ranks]) -> None:
    """A rank may be behind rank 0 within a step: it answers once the step is over."""
    ranks = Ranks(2, torch.float32)
    made.append(ranks)
    ranks.store.source([1], Layers(0, LAYERS))
    assert ranks.waited_for == [7]


def test_a_rank_that_is_gone_is_an_error_at_once(made: list[Ranks]) -> None:
    """Not a wait for ever, and no page of zeros; a stranger is not answered."""
    ranks = Ranks(2, torch.float32)
    made.append(ranks)
    place = ranks.servers[0].place
    stranger = sharded_store._open(place.partition("/")[0] + "/" + "0" * 16, TIMEOUT_S)
    with stranger, pytest.raises(WorkerLost, match="closed"):
        sharded_store._receive(stranger, 1)
    ranks.store._peers[0].shutdown(2)
    with pytest.raises(WorkerLost):
        ranks.store.source([1], Layers(0, LAYERS))
    ranks.servers[0].close()
    with pytest.raises(WorkerLost, match="can't be reached"):
        ShardedStore(DeviceStore(ranks.parts[0]), [place], lambda: 0, TIMEOUT_S)
