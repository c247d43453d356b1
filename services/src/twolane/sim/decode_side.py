"""The decode half of a simulated worker: a continuous batch, fast-forwarded between changes.

Between two changes of its rows every step is a little longer than the last by a constant, so a run of
steps has a closed form and costs one event. Rows join and leave only between steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

from twolane.policies.decode import DecodePolicy, DecodeRow, DecodeView, FinishedAnswer
from twolane.sim.events import EventQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest


class DecodeHost(Protocol):
    """What the cluster does when rows come and go."""

    def decode_admitted(self, request: SimRequest, side: DecodeSide) -> None:
        """Pages are reserved."""

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
            return [self._side.row_of(request) for request in self._requests[index]]
        return self._side.row_of(self._requests[index])

    def __iter__(self) -> Iterator[DecodeRow]:
        row_of = self._side.row_of
        return (row_of(request) for request in self._requests)


class DecodeSide:
    """Batch, reservations and admission of one worker."""

    def __init__(
        self, events: EventQueue, profile: EngineProfile, policy: DecodePolicy, max_rows: int, max_tokens: int
    ) -> None:
        self.host: DecodeHost | None = None
        self.index = 0
        self.waiting: list[SimRequest] = []
        # Requests with pages: reserved (in transfer) or running, in order of admission.
        self.holders: dict[str, SimRequest] = {}
        self.running: dict[str, SimRequest] = {}
        self.memory: Any = None
        self.steps = 0
        self.held_tokens = 0
        self.reserved_tokens = 0
        # Answer tokens that the holders may still generate at most.
        self.left_tokens = 0
        self.preemptions = 0
        self.busy_s = 0.0
        self._events = events
        self._profile = profile
        self._policy = policy
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._finished: list[FinishedAnswer] = []
        self._joining: list[SimRequest] = []
        self._ends: list[tuple[int, int, int, SimRequest]] = []
        self._segment_start_s = 0.0
        self._constant_s = 0.0
        self._planned = 0
        self._version = 0
        self._cut_pending = False
        self._stall_s = 0.0
        self._segment = 0
        self._gap_segments: list[int] = []
        self._gap_values: list[float] = []

    @property
    def used_tokens(self) -> int:
        """Tokens of all pages in use or reserved, as of the last change."""
        return self.held_tokens + self.reserved_tokens

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs, is reserved or waits."""
        return not self.holders and not self.waiting

    def row_of(self, request: SimRequest) -> DecodeRow:
        """The request as the policy sees it."""
        done = self._done(request) if request.name in self.running else request.generated_tokens
        held = request.prompt_tokens + 1 + done - request.generated_tokens
        return DecodeRow(request.name, held, done, self._max_tokens, request.draw)

    def offer(self, request: SimRequest) -> None:
        """Asks for pages."""
        self.waiting.append(request)
        self.admit()

    def landed(self, arrival: tuple[SimRequest, int]) -> None:
        """The pages of (request, lease) are here: the row joins at the next step.

        Pages under an older lease than the request's are ignored.
        """
        request, lease = arrival
        if lease != request.lease or self.holders.get(request.name) is not request:
            return
        self._joining.append(request)
        if not self.running:
            self._begin()
        elif not self._cut_pending:
            self._cut()

    def cancel(self, request: SimRequest) -> None:
        """Frees a request's pages or place in the queue, wherever it is."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request.name in self.running:
            self._catch_up()
            self._drop(request)
            self._begin()
        elif request.name in self.holders:
            self._unreserve(request)
            self.admit()

    def fail(self) -> list[SimRequest]:
        """Loses everything; gives the requests back with the tokens they had generated."""
        self._catch_up()
        lost = [*self.holders.values(), *self.waiting]
        for request in list(self.running.values()):
            self._drop(request)
        self.holders.clear()
        self.waiting.clear()
        self._joining.clear()
        self._ends.clear()
        self.held_tokens = self.reserved_tokens = self.left_tokens = 0
        self._version += 1
        self._cut_pending = False
        self.memory = None
        return lost

    def admit(self) -> None:
        """Lets the policy reserve pages for waiting requests."""
        if not self.waiting:
            return
        self._decide(preempt_only=False)

    def _decide(self, *, preempt_only: bool) -> None:
        view = DecodeView(
            rows=Rows(list(self.holders.values()), self),
            waiting=() if preempt_only else Rows(self.waiting, self),
            capacity_tokens=self._profile.capacity_tokens,
            max_rows=self._max_rows,
            finished=tuple(self._finished),
            memory=self.memory,
            held_tokens=self.used_tokens,
            left_tokens=self.left_tokens,
        )
        self._finished.clear()
        decision = self._policy.decide(self._events.now_s, view)
        self.memory = decision.memory
        for name in decision.preempt:
            self._preempt(self.holders[name])
        for name in decision.admit:
            request = self.waiting.pop(0)
            if request.name != name:
                raise RuntimeError(f"policy {self._policy.name} admitted out of order")
            request.lease += 1
            self.holders[name] = request
            self.left_tokens += self._most_left(request)
            self.reserved_tokens += request.prompt_tokens + 1
            if self.host is not None:
                self.host.decode_admitted(request, self)

    def _preempt(self, request: SimRequest) -> None:
        """Takes the pages away; what was generated is computed again, on this worker, once admitted."""
        self.preemptions += 1
        if request.name in self.running:
            self._drop(request)
            request.recompute = True
            request.replays += 1
        else:
            self._unreserve(request)
        self.waiting.insert(0, request)

    def _unreserve(self, request: SimRequest) -> None:
        """Gives the pages of a row in transfer back."""
        del self.holders[request.name]
        self.reserved_tokens -= request.prompt_tokens + 1
        self.left_tokens -= self._most_left(request)
        self._joining = [other for other in self._joining if other is not request]

    def stall(self, seconds: float) -> None:
        """Delays the next step, for a prompt computed on this worker; nothing to delay without rows."""
        if not self.running:
            return
        self._stall_s += seconds
        if not self._cut_pending:
            self._cut()

    def _most_left(self, request: SimRequest) -> int:
        """Tokens that a request may generate here at most; its prefill gives one of its answer."""
        return self._max_tokens - request.generated_tokens - (0 if request.prefilled else 1)

    def _done(self, request: SimRequest) -> int:
        """Answer tokens of a running row, at the last finished step."""
        return request.generated_tokens + self.steps - request.joined_step

    def _steps_s(self, count: int) -> float:
        """Seconds of the first `count` steps of the segment."""
        rows = len(self.running)
        read = self._profile.decode_read_s
        return count * (self._constant_s + read * (self.held_tokens + rows * (count - 1) / 2.0))

    def _cut(self) -> None:
        """Ends the segment at the next step boundary, for rows to join."""
        elapsed_s = self._events.now_s - self._segment_start_s
        rows, read = len(self.running), self._profile.decode_read_s
        slope = read * rows / 2.0
        first = self._constant_s + read * self.held_tokens - slope
        count = math.ceil(
            (math.sqrt(first * first + 4.0 * slope * max(0.0, elapsed_s)) - first) / (2.0 * slope)
        )
        count = max(1, count)
        if count >= self._planned:
            self._cut_pending = True
            return
        self._plan(count)
        self._cut_pending = True

    def _plan(self, count: int) -> None:
        self._planned = count
        self._version += 1
        self._events.at(self._segment_start_s + self._steps_s(count), self._boundary, self._version)

    def _boundary(self, version: int) -> None:
        if version != self._version:
            return
        self._advance(self._planned)
        self._begin()

    def _catch_up(self) -> None:
        """Counts the whole steps done so far, before an unplanned change."""
        if not self.running:
            return
        count = 0
        while (
            count < self._planned and self._segment_start_s + self._steps_s(count + 1) <= self._events.now_s
        ):
            count += 1
        self._advance(count)

    def _advance(self, count: int) -> None:
        rows = len(self.running)
        if count <= 0 or rows == 0:
            return
        seconds = self._steps_s(count)
        last_s = seconds - self._steps_s(count - 1)
        self.busy_s += seconds
        self.steps += count
        self._segment_start_s += seconds
        self.held_tokens += rows * count
        self.left_tokens -= rows * count
        self._note_gap(last_s)
        while self._ends and self._ends[0][0] <= self.steps:
            _, _, segment, request = heappop(self._ends)
            if self.running.get(request.name) is request and segment == request.joined_segment:
                self._complete(request)

    def _note_gap(self, seconds: float) -> None:
        """Remembers the longest step of the segment; only later maxima can matter."""
        while self._gap_values and self._gap_values[-1] <= seconds:
            self._gap_values.pop()
            self._gap_segments.pop()
        self._gap_values.append(seconds)
        self._gap_segments.append(self._segment)

    def _complete(self, request: SimRequest) -> None:
        self._drop(request)
        request.last_token_s = self._segment_start_s
        self._finished.append(FinishedAnswer(request.generated_tokens))
        if self.host is not None:
            self.host.decode_finished(request)

    def _drop(self, request: SimRequest) -> None:
        """Takes a running row out and books its tokens and gaps."""
        done = self._done(request)
        grown = done - request.generated_tokens
        self.held_tokens -= request.prompt_tokens + 1 + grown
        self.left_tokens -= self._max_tokens - done
        request.prompt_tokens += grown
        request.generated_tokens = done
        request.token_clock_s = self._segment_start_s
        position = bisect_left(self._gap_segments, request.joined_segment)
        if grown > 0 and position < len(self._gap_values):
            request.worst_gap_s = max(request.worst_gap_s, self._gap_values[position])
        del self.running[request.name]
        del self.holders[request.name]

    def _begin(self) -> None:
        """Starts a segment now: joins what landed, makes room, plans to the next end."""
        self._version += 1
        self._cut_pending = False
        self._segment += 1
        now_s = self._events.now_s
        self._segment_start_s = now_s + self._stall_s
        stalled_s, self._stall_s = self._stall_s, 0.0
        self._join()
        capacity = self._profile.capacity_tokens
        if self.used_tokens + len(self.running) > capacity and len(self.holders) > 1:
            self._decide(preempt_only=True)
        self.admit()
        rows = len(self.running)
        if rows == 0:
            if self.is_empty and self.host is not None:
                self.host.decode_idle(self)
            return
        if stalled_s > 0.0:
            self._note_gap(stalled_s + self._profile.decode_constant_s(rows))
        self._constant_s = self._profile.decode_constant_s(rows)
        left = self._ends_at() - self.steps
        room = max(1, (capacity - self.used_tokens) // rows)
        self._plan(max(1, min(left, room)))

    def _ends_at(self) -> int:
        """Step count at which the next row ends; drops entries of rows that left."""
        while True:
            step, _, segment, request = self._ends[0]
            if self.running.get(request.name) is request and segment == request.joined_segment:
                return step
            heappop(self._ends)

    def _join(self) -> None:
        for request in self._joining:
            self.reserved_tokens -= request.prompt_tokens + 1
            self.held_tokens += request.prompt_tokens + 1
            self.running[request.name] = request
            request.joined_step = self.steps
            request.joined_segment = self._segment
            left = request.output_tokens - request.generated_tokens
            heappush(self._ends, (self.steps + left, request.index, self._segment, request))
        if self._joining:
            rows = len(self.running)
            step_s = self._profile.decode_constant_s(rows) + self._profile.decode_read_s * self.held_tokens
            for request in self._joining:
                first_gap_s = self._segment_start_s + step_s - request.token_clock_s
                request.worst_gap_s = max(request.worst_gap_s, first_gap_s)
            self._joining.clear()
