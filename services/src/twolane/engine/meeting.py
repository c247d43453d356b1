"""Where tensor-parallel ranks meet, agree, and notice that one of them is gone.

Rank 0 keeps a small key-value store at the address all were given; every rank writes a sign of life into it
once a second. Apart from the collectives, which can't tell a dead rank from a slow one nor be interrupted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from twolane.core.errors import ConfigError
from twolane.engine.parallel_settings import TensorParallel

log = logging.getLogger(__name__)

BEAT_S = 1.0
# A rank that is silent for so long is taken for dead: on a busy machine processes stand still for seconds.
LOST_S = 30.0
# The same once another process has come in its place: no two are meant to be one rank.
REPLACED_S = 3.0
_POLL_S = 0.05


def end_process(reason: str) -> None:
    """Ends this process at once: a rank without the others can neither go on nor wait."""
    log.critical("ending: %s", reason)
    logging.shutdown()
    os._exit(1)


class Meeting:
    """One rank's connection to the meeting place.

    Attributes:
        on_lost: told, in a thread of its own, why this rank can't go on; ends the process unless changed.
        on_stop: told that a rank was asked to stop.
    """

    def __init__(self, settings: TensorParallel) -> None:
        """Waits until all ranks are there.

        Raises:
            ConfigError: the address is malformed, taken or can't be reached, or ranks are missing in time.
        """
        if not 0 <= settings.rank < settings.size:
            raise ConfigError(f"tensor-parallel rank {settings.rank} is not among {settings.size} ranks")
        self._settings = settings
        self.on_lost: Callable[[str], None] = end_process
        self.on_stop: Callable[[], None] = lambda: None
        self._host, self._port = _parse(settings.address)
        self.store = self._arrive()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._thread.start()

    def put(self, key: str, value: str) -> None:
        """Tells all ranks something."""
        self.store.set(key, value)

    def wait_for(self, key: str, timeout_s: float) -> str:
        """What a rank has told under a key.

        Raises:
            ConfigError: nothing in time.
        """
        self._await([key], timeout_s)
        return bytes(self.store.get(key)).decode()

    def agree(self, subject: str, value: str) -> None:
        """Waits until every rank has said the same.

        Raises:
            ConfigError: another rank said something else, or nothing in time.
        """
        ranks = range(self._settings.size)
        self.put(f"{subject}/{self._settings.rank}", value)
        self._await([f"{subject}/{rank}" for rank in ranks], self._settings.load_timeout_s)
        first = self.wait_for(f"{subject}/0", self._settings.timeout_s)
        if value != first:
            raise ConfigError(
                f"tensor-parallel rank {self._settings.rank} has {subject} {value}, rank 0 {first}: start "
                "all ranks with the same model folder and flags"
            )

    def request_stop(self) -> None:
        """Asks rank 0 to end for all."""
        self.put("stop", "1")

    def leave(self) -> None:
        """This rank ends as it should; rank 0 waits for the others, for the place ends with it."""
        self._leaving.set()
        self._thread.join(self._settings.timeout_s)
        self.put(f"left/{self._settings.rank}", "1")
        if self._settings.rank == 0:
            deadline_s = time.monotonic() + LOST_S
            while missing := [rank for rank in range(1, self._settings.size) if not self._is_over(rank)]:
                if time.monotonic() > deadline_s:
                    log.warning("tensor-parallel ranks %s did not end within %g s", missing, LOST_S)
                    break
                time.sleep(_POLL_S)

    def _is_over(self, rank: int) -> bool:
        """Whether a rank left in order, or another process waits to take its place in the next life."""
        return self.store.check([f"left/{rank}"]) or _is_replaced(self.store, rank)

    def _connect(self, is_first: bool, timeout_s: float | None = None) -> TCPStore:
        settings = self._settings
        try:
            return TCPStore(
                self._host,
                self._port,
                settings.size,
                is_first,
                timeout=timedelta(seconds=timeout_s or settings.timeout_s),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:
            what = "can't listen" if is_first else "did not find rank 0"
            raise ConfigError(
                f"tensor-parallel rank {settings.rank} {what} at {settings.address} within "
                f"{settings.timeout_s:g} s ({str(error).splitlines()[0]}); start all {settings.size} ranks "
                "with the address of rank 0"
            ) from error

    def _arrive(self) -> TCPStore:
        """Takes this rank's place, and waits for all others.

        A place that is taken may be that of a process that has died: its ranks are about to end, and what
        they start anew has a free one.
        """
        settings = self._settings
        deadline_s = time.monotonic() + settings.timeout_s
        self.store = self._connect(settings.rank == 0)
        while self.store.add(f"claimed/{settings.rank}", 1) > 1:
            if not self._outlasts_place(deadline_s):
                self.store.add(f"claimed/{settings.rank}", -1)
                raise ConfigError(
                    f"another process is tensor-parallel rank {settings.rank} at {settings.address}; give "
                    "every rank its own number, and wait until the last ranks have ended"
                )
            log.info("the last ranks have ended")
            self.store = self._connect(False)
        self.put(f"size/{settings.rank}", str(settings.size))
        self._await([f"size/{rank}" for rank in range(settings.size)], settings.timeout_s)
        first = self.wait_for("size/0", settings.timeout_s)
        if first != str(settings.size):
            raise ConfigError(
                f"tensor-parallel rank {settings.rank} expects {settings.size} ranks, rank 0 {first}: give "
                "all the same size"
            )
        return self.store

    def _outlasts_place(self, deadline_s: float) -> bool:
        """Waits for the end of rank 0, and with it of the meeting place; False: not in time."""
        try:
            while time.monotonic() < deadline_s:
                self.store.check(["size/0"])
                time.sleep(_POLL_S)
        except RuntimeError:
            return True
        return False

    def _await(self, keys: list[str], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self.store.check(keys):
            if time.monotonic() > deadline_s:
                missing = [key for key in keys if not self.store.check([key])]
                raise ConfigError(
                    f"tensor-parallel rank {self._settings.rank} waited {timeout_s:g} s in vain for "
                    f"{', '.join(missing)} at {self._settings.address}; are all {self._settings.size} ranks "
                    "running and can they reach each other?"
                )
            time.sleep(_POLL_S)

    def _watch(self) -> None:
        """Gives signs of life and looks for those of the others."""
        mine = self._settings.rank
        others = [rank for rank in range(self._settings.size) if rank != mine]
        seen = dict.fromkeys(others, (-1, time.monotonic()))
        try:
            # A connection of its own: calls on the other may take long.
            store = self._connect(False, LOST_S)
            while not self._leaving.wait(BEAT_S):
                store.add(f"beat/{mine}", 1)
                for rank in others:
                    beats, now_s = store.add(f"beat/{rank}", 0), time.monotonic()
                    if beats != seen[rank][0] or store.check([f"left/{rank}"]):
                        seen[rank] = (beats, now_s)
                    elif now_s - seen[rank][1] > (patience_s := self._patience_s(store, rank)):
                        self.on_lost(f"tensor-parallel rank {rank} gave no sign of life for {patience_s:g} s")
                if mine == 0 and store.check(["stop"]):
                    self.on_stop()
        except (RuntimeError, ConfigError) as error:
            if not self._leaving.is_set():
                self.on_lost(f"tensor-parallel rank 0 is gone ({str(error).splitlines()[0]})")

    def _patience_s(self, store: TCPStore, rank: int) -> float:
        return min(REPLACED_S, LOST_S) if _is_replaced(store, rank) else LOST_S


def _is_replaced(store: TCPStore, rank: int) -> bool:
    """Whether a second process has come as this rank and still waits."""
    return store.add(f"claimed/{rank}", 0) > 1


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"tensor-parallel address {address!r} must be host:port of rank 0")
    return host.strip("[]"), int(port)
