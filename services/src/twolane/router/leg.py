"""One worker's part of one answer: where its events go, what it costs, how it is stopped.

`dispatch.py` makes it, `sessions.py` delivers events to it, `answer.py` closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twolane.core.errors import TwolaneError
from twolane.router.worker_books import Charge, WorkerBooks
from twolane.v1 import worker_pb2


class LegSession(Protocol):
    """What a leg needs of the stream to its worker."""

    books: WorkerBooks

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        ...

    def cancel(self, stream_id: int) -> None:
        """Tells the worker to stop."""
        ...

    def forget(self, stream_id: int) -> None:
        """Delivers nothing more."""
        ...


class Leg:
    """A worker's part of an answer.

    Attributes:
        on_event: takes the worker's events.
        on_lost: takes the end of the stream to the worker.
        stream_id: its number on the stream.
    """

    __slots__ = ("_charge", "_open", "_session", "on_event", "on_lost", "stream_id")

    def __init__(
        self,
        session: LegSession,
        charge: Charge,
        on_event: Callable[[worker_pb2.RequestEvent], None],
        on_lost: Callable[[Leg, TwolaneError], None],
    ) -> None:
        self.on_event = on_event
        self.on_lost = on_lost
        self.stream_id = 0
        self._session = session
        self._charge = charge
        self._open = True
        session.books.charge(charge)

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self._session.worker_id

    def prompt_done(self) -> None:
        """The prompt is computed."""
        if self._open:
            self._session.books.prompt_done(self._charge)

    def close(self) -> None:
        """The part is over; late events are ignored. Idempotent."""
        if self._open:
            self._open = False
            self._session.books.settle(self._charge)
            self._session.forget(self.stream_id)

    def cancel(self) -> None:
        """Ends the part at the worker, and here. Idempotent."""
        if self._open:
            self.close()
            self._session.cancel(self.stream_id)

    def lose(self, error: TwolaneError) -> None:
        """The stream to the worker broke: nothing can be said to it any more."""
        if self._open:
            self._open = False
            self._session.books.settle(self._charge)
            self.on_lost(self, error)
