"""A sequence of pushes to one peer that ends once: everything landed, or why not.

The sender makes deliveries; the streams of push_stream.py carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from twolane.core.errors import TwolaneError, error_from_code
from twolane.v1 import transfer_pb2 as pb

# Called once per delivery: None when everything landed, else why not.
Done = Callable[[TwolaneError | None], None]


@dataclass(frozen=True, slots=True)
class Outbound:
    """A push, and the bytes that follow it on a stream that takes them."""

    push: pb.PagePush
    payload: Sequence[memoryview] = ()


class Delivery:
    """A sequence of pushes that ends with one call of `done`."""

    def __init__(self, pushes: Iterator[Outbound], done: Done) -> None:
        self.pushes = pushes
        self._done = done
        self._unanswered = 0
        self._all_sent = False
        self.ended = False

    def sent(self) -> None:
        """Counts a push that is on its way."""
        self._unanswered += 1

    def all_sent(self) -> None:
        """No further push follows."""
        self._all_sent = True
        self._end_if_answered()

    def answered(self, ack: pb.PagePushAck) -> None:
        """Takes the peer's answer to the oldest unanswered push."""
        self._unanswered -= 1
        if ack.error.code:
            self.fail(error_from_code(ack.error.code, ack.error.message))
        self._end_if_answered()

    def fail(self, error: TwolaneError) -> None:
        """Ends the delivery once, with an error."""
        if not self.ended:
            self.ended = True
            self._done(error)

    def drop(self) -> None:
        """Nothing more of it is sent, and nobody is told."""
        self.ended = True

    def _end_if_answered(self) -> None:
        if self._all_sent and self._unanswered == 0 and not self.ended:
            self.ended = True
            self._done(None)
