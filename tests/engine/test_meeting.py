"""Ranks that can't meet, or disagree, say so within their deadline; one that is gone is noticed."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from twolane.core.errors import ConfigError
from twolane.engine import meeting
from twolane.engine.meeting import Meeting
from twolane.engine.parallel_settings import TensorParallel


def free_address() -> str:
    """host:port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet(*places: TensorParallel) -> list[Meeting | ConfigError]:
    """All at once, each in a thread of its own."""
    met: list[Any] = [None] * len(places)

    def join(index: int) -> None:
        try:
            met[index] = Meeting(places[index])
        except ConfigError as error:
            met[index] = error

    threads = [threading.Thread(target=join, args=(index,)) for index in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return met


def test_a_missing_rank_is_named() -> None:
    """Two of three came."""
    address = free_address()
    found = meet(*(TensorParallel(rank, 3, address, timeout_s=1.0) for rank in (0, 1)))
    assert all(isinstance(error, ConfigError) and "size/2" in error.message for error in found)


def test_ranks_that_count_differently_or_twice_are_refused() -> None:
    """Sizes that differ, and a rank that is there already."""
    address = free_address()
    places = [TensorParallel(0, 2, address, 1.0), TensorParallel(1, 2, address, 1.0)]
    first, second = meet(*places)
    assert isinstance(first, Meeting)
    assert isinstance(second, Meeting)
    with pytest.raises(ConfigError, match="another process is tensor-parallel rank 1"):
        Meeting(places[1])
    with pytest.raises(ConfigError, match="can't listen"):
        Meeting(places[0])
    for each, value in ((first, "64"), (second, "65")):
        each.put(f"pages/{each._settings.rank}", value)
    with pytest.raises(ConfigError, match="rank 1 has pages 65, rank 0 64"):
        second.agree("pages", "65")
    second.leave()
    first.leave()


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:99999"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    """Before anything is waited for."""
    with pytest.raises(ConfigError, match="must be host:port"):
        Meeting(TensorParallel(0, 2, address, 1.0))


def test_a_silent_rank_and_a_wish_to_stop_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 hears of both; a rank that left in order is not missed."""
    monkeypatch.setattr(meeting, "BEAT_S", 0.01)
    address = free_address()
    first, second = meet(TensorParallel(0, 2, address, 5.0), TensorParallel(1, 2, address, 5.0))
    assert isinstance(first, Meeting)
    assert isinstance(second, Meeting)
    lost, stopped = threading.Event(), threading.Event()
    first.on_lost = lambda _reason: lost.set()
    first.on_stop = stopped.set
    second.request_stop()
    assert stopped.wait(30)
    # Silent, as a process that was killed is.
    second._leaving.set()
    monkeypatch.setattr(meeting, "LOST_S", 0.1)
    assert lost.wait(30)
    second.leave()
    first.leave()


def test_a_rank_that_comes_again_ends_the_life_of_the_others_and_has_a_place_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The dead one is missed at once then, and the new one waits instead of failing."""
    monkeypatch.setattr(meeting, "BEAT_S", 0.01)
    monkeypatch.setattr(meeting, "REPLACED_S", 0.2)
    address = free_address()
    places = [TensorParallel(rank, 2, address, 60.0) for rank in (0, 1)]
    first, second = meet(*places)
    assert isinstance(first, Meeting)
    assert isinstance(second, Meeting)
    lost = threading.Event()
    first.on_lost = lambda _reason: lost.set()
    # Killed.
    second._leaving.set()
    second._thread.join(30)
    found: list[Any] = []
    newcomer = threading.Thread(target=lambda: found.extend(meet(places[1])))
    newcomer.start()
    assert lost.wait(30)
    # The place ends with the process that keeps it.
    first.leave()
    first._thread.join(30)
    del first.store
    del second.store
    [again] = meet(places[0])
    newcomer.join(60)
    assert isinstance(again, Meeting)
    [third] = found
    assert isinstance(third, Meeting)
    third.leave()
    again.leave()
