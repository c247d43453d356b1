"""Requests as decode policies see them, built only when a policy looks, and whom a decode half reports to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twolane.policies.decode import DecodeRow
from twolane.sim.request import SimRequest

if TYPE_CHECKING:
    from twolane.sim.decode_side import DecodeSide


class DecodeHost(Protocol):
    """What the cluster does when rows come and go."""

    def decode_admitted(self, request: SimRequest, side: DecodeSide) -> None:
        """Pages are reserved."""

    def decode_preempted(self, request: SimRequest, side: DecodeSide) -> None:
        """A row lost its pages: its tokens must be computed again on this worker."""

    def decode_finished(self, request: SimRequest) -> None:
        """The answer is complete."""

    def decode_idle(self, side: DecodeSide) -> None:
        """No row is left and none waits."""


class Rows(Sequence[DecodeRow]):
    """A view of requests as policy rows, built only when a policy looks."""

    __slots__ = ("_requests", "_side")

    def __init__(self, requests: Sequence[SimRequest], side: DecodeSide) -> None:
        self._requests = requests
        self._side = side

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._row(request) for request in self._requests[index]]
        return self._row(self._requests[index])

    def __iter__(self) -> Iterator[DecodeRow]:
        return (self._row(request) for request in self._requests)

    def _row(self, request: SimRequest) -> DecodeRow:
        side = self._side
        if request.name in side.running:
            done = side.done_tokens(request) + side.ahead
            held = request.prompt_tokens + 1 + done - request.generated_tokens - side.spare
        else:
            # What another worker has drawn is known here once it lands.
            done = request.max_tokens - request.left_tokens if request.name in side.holders else 0
            held = request.prompt_tokens + 1
        return DecodeRow(request.name, held, done, request.max_tokens, request.draw)
