"""The decode half of a simulated worker: a continuous batch, fast-forwarded between changes.

Between two changes of its rows every step is a little longer than the last by a constant, so a run of
steps has a closed form and costs one event. Rows join and leave only between steps. Keeps the books of the
worker's pages, of prompts too; with prompts waiting every step is played, and may carry some of them.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from twolane.policies.decode import DecodeDecision, DecodePolicy, DecodeView, FinishedAnswer
from twolane.sim.decode_rows import DecodeHost, Rows
from twolane.sim.events import EventQueue
from twolane.sim.page_queue import PageQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.prompt_pages import PromptPages
from twolane.sim.request import SimRequest
from twolane.sim.step_runs import AnswerEnds, StepGaps, steps_s, steps_within
from twolane.sim.tally import Tally

if TYPE_CHECKING:
    from twolane.sim.prefill_side import PrefillSide


# While requests wait for pages a live worker asks its policy before every step; here every few are enough.
ASK_EVERY = 8


class DecodeSide:
    """Batch, reservations and admission of one worker.

    Attributes:
        waiting: requests that have no pages yet, in order.
        holders: requests with pages, reserved (in transfer) or running, in order of admission.
        running: those whose answers grow, in the order in which they joined.
        joining: those that join at the next step.
        left_tokens: answer tokens that the holders may still generate at most.
        pages: those of prompts.
        ask_every: steps at most between two questions to the policy while requests wait.
        ahead, spare: tokens that every row of a view has grown since the last change, without a page of them.
    """

    def __init__(
        self, events: EventQueue, profile: EngineProfile, policy: DecodePolicy, max_rows: int
    ) -> None:
        self.host: DecodeHost | None = None
        self.prompts: PrefillSide | None = None
        self.tally = Tally()
        self.index = 0
        self.waiting = PageQueue()
        self.holders: dict[str, SimRequest] = {}
        self.running: dict[str, SimRequest] = {}
        self.joining: list[SimRequest] = []
        self.memory: Any = None
        self.decisions: list[tuple[float, DecodeDecision]] | None = None
        self.steps = self.preemptions = 0
        self.held_tokens = self.reserved_tokens = self.left_tokens = 0
        self.pages = PromptPages()
        self.is_settling = False
        self.ask_every = ASK_EVERY
        self.ahead = self.spare = 0
        self._events = events
        self._profile = profile
        self._policy = policy
        # The cluster cuts prompts to half the capacity; one that is computed again has an answer behind it.
        self._longest_tokens = profile.capacity_tokens // 2 + policy.settings.max_output_tokens + 1
        self._early_tokens = policy.settings.early_tokens(profile.capacity_tokens, self._longest_tokens)
        self._max_rows = max_rows
        self._finished: list[FinishedAnswer] = []
        self._leaving: list[SimRequest] = []
        self._ends = AnswerEnds(self.running)
        self.busy_s = self._segment_start_s = self._constant_s = 0.0
        self._planned = self._version = self._segment = 0
        self._cut_pending = self._mixed = False
        self._gaps = StepGaps()

    @property
    def used_tokens(self) -> int:
        """Tokens of all pages in use or reserved, as of the last change."""
        return self.held_tokens + self.reserved_tokens + self.pages.taken_tokens

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs, is reserved or waits."""
        return not self.holders and not self.waiting

    # Pages of prompts

    def take(self, name: str, tokens: int) -> bool:
        """Takes pages for a prompt that begins here; False when there are too few."""
        if tokens > self._profile.capacity_tokens - self.used_tokens:
            return False
        self.pages.take(name, tokens)
        self.waiting.owed.discard(name)
        return True

    def give_back(self, name: str) -> None:
        """Frees the pages of a prompt, if it has any; others may now go on."""
        if self.pages.free(name):
            self.admit()
            if self.prompts is not None:
                self.prompts.decide()

    # Requests that come and go

    def offer(self, request: SimRequest) -> None:
        """Another worker is to compute a prompt: pages will be wanted, and may be had early."""
        self.waiting.early[request.name] = request
        self._admit_soon()

    def begun(self, request: SimRequest) -> None:
        """Another worker has begun to compute a prompt: now its pages are wanted."""
        if self.waiting.begin(request):
            self._admit_soon()

    def _admit_soon(self) -> None:
        self.admit()
        if self._wants():
            # From now on the policy is asked again between steps.
            self.cut()

    def _wants(self) -> bool:
        """Whether the policy may have somebody to admit; newest tokens may have no pages yet."""
        return self.waiting.wants(has_room=self.used_tokens - len(self.running) <= self._early_tokens)

    def landed(self, arrival: tuple[SimRequest, int]) -> None:
        """The pages of (request, lease) are here: the row joins at the next step.

        Pages under an older lease than the request's are ignored.
        """
        request, lease = arrival
        if lease == request.lease and self.holders.get(request.name) is request:
            self._join_soon(request)

    def stay(self, request: SimRequest) -> None:
        """A prompt that was computed here goes on here, in the pages that it has."""
        self.pages.free(request.name)
        self._reserve(request, request.max_tokens - request.generated_tokens)
        self._join_soon(request)

    def _join_soon(self, request: SimRequest) -> None:
        # Now it is known here what its prompt's worker has drawn.
        left_tokens = request.max_tokens - request.generated_tokens
        self.left_tokens += left_tokens - request.left_tokens
        request.left_tokens = left_tokens
        self.waiting.held_early.discard(request.name)
        self.joining.append(request)
        if self.running:
            self.cut()
        else:
            # After all that lands at this moment: a live worker takes it into one step.
            self._events.at(self._events.now_s, self._begin_joined)

    def _begin_joined(self, _: object) -> None:
        is_busy = self.running or self.is_settling or (self.prompts is not None and self.prompts.is_busy)
        if self.joining and not is_busy:
            self.begin()

    def cancel(self, request: SimRequest) -> None:
        """Frees a request's pages or place in the queue, wherever it is; a step that runs goes on."""
        if self.waiting.remove(request.name):
            self.admit()
        elif request.name in self.running:
            self._leaving.append(request)
            self.cut()
        elif request.name in self.holders:
            self._unreserve(request)
            self.admit()

    def fail(self) -> list[SimRequest]:
        """Loses everything; gives the requests back with the tokens they had generated."""
        self._advance(self._elapsed_steps())
        lost = [*self.holders.values(), *self.waiting]
        for request in list(self.running.values()):
            self._drop(request)
        for kept in (self.holders, self.waiting, self.joining, self._ends, self._leaving, self.pages):
            kept.clear()
        self.held_tokens = self.reserved_tokens = self.left_tokens = 0
        self._version += 1
        self._cut_pending, self._mixed, self.memory = False, False, None
        return lost

    def admit(self) -> None:
        """Lets the policy reserve pages for waiting requests."""
        if not self._wants():
            return
        # Between steps a row's newest token has no page yet; within one it has.
        self.spare = 1 if self.is_settling else 0
        self.ahead = 0 if self.is_settling else self._elapsed_steps()
        grown = len(self.running) * (self.ahead - self.spare)
        view = DecodeView(
            rows=Rows(list(self.holders.values()), self),
            waiting=Rows(list(self.waiting), self),
            capacity_tokens=self._profile.capacity_tokens,
            max_rows=self._max_rows,
            other_tokens=self.pages.taken_tokens,
            finished=tuple(self._finished),
            memory=self.memory,
            held_tokens=self.held_tokens + self.reserved_tokens + grown,
            left_tokens=self.left_tokens - len(self.running) * self.ahead,
            begun=len(self.waiting.begun),
            early_rows=len(self.waiting.held_early),
            longest_tokens=self._longest_tokens,
        )
        self._finished.clear()
        decision = self._policy.decide(self._events.now_s, view)
        self.memory = decision.memory
        if self.decisions is not None:
            self.decisions.append((self._events.now_s, decision))
        for name in decision.admit:
            request = next(iter(self.waiting))
            if request.prompt_tokens + 1 > self._profile.capacity_tokens - self.used_tokens - grown:
                return
            self.waiting.pop(name)
            request.lease += 1
            # As its worker sees it: tokens of an earlier life are part of the prompt.
            self._reserve(request, request.max_tokens - (request.prompt_tokens - request.asked_tokens))
            if self.host is not None:
                self.host.decode_admitted(request, self)

    def _preempt(self, request: SimRequest) -> None:
        self.preemptions += 1
        self._drop(request)
        self.waiting.owed.add(request.name)
        request.replays += 1
        if self.host is not None:
            self.host.decode_preempted(request, self)

    def _reserve(self, request: SimRequest, left_tokens: int) -> None:
        """Takes pages for a row that is to join, and may then generate so many tokens."""
        self.holders[request.name] = request
        self.reserved_tokens += request.prompt_tokens + 1
        request.left_tokens = left_tokens
        self.left_tokens += left_tokens

    def _unreserve(self, request: SimRequest) -> None:
        """Gives the pages of a row that has not joined back."""
        del self.holders[request.name]
        self.waiting.held_early.discard(request.name)
        self.reserved_tokens -= request.prompt_tokens + 1
        self.left_tokens -= request.left_tokens
        self.joining = [other for other in self.joining if other is not request]

    # Steps

    def done_tokens(self, request: SimRequest) -> int:
        """Answer tokens of a running row, at the last finished step."""
        return request.generated_tokens + self.steps - request.joined_step

    def _steps_s(self, count: int) -> float:
        """Seconds of the first `count` steps of the segment."""
        read = self._profile.decode_read_s
        return steps_s(count, self._constant_s + read * self.held_tokens, read * len(self.running))

    def cut(self) -> None:
        """Ends the segment at the next step boundary, for rows or prompts to join or leave."""
        if self._cut_pending or self.is_settling or not self.running:
            return
        self._cut_pending = True
        count = max(1, ceil(self._steps_within(self._events.now_s - self._segment_start_s)))
        if count < self._planned:
            self._plan(count)

    def _steps_within(self, seconds: float) -> float:
        """Steps of the segment that fit, the last one in part."""
        read = self._profile.decode_read_s
        first_s = self._constant_s + read * self.held_tokens
        return steps_within(seconds, first_s, read * len(self.running))

    def _elapsed_steps(self) -> int:
        """Whole steps of the segment that are over."""
        if not self.running:
            return 0
        return min(self._planned, int(self._steps_within(self._events.now_s - self._segment_start_s) + 1e-6))

    def _plan(self, count: int) -> None:
        self._planned = count
        self._version += 1
        self._events.at(self._segment_start_s + self._steps_s(count), self._boundary, self._version)

    def _boundary(self, version: int) -> None:
        if version != self._version:
            return
        self.is_settling = True
        self._advance(self._planned)
        if self._mixed and self.prompts is not None:
            self.prompts.settle()
        self.begin()

    def _advance(self, count: int) -> None:
        rows = len(self.running)
        if count <= 0 or rows == 0:
            return
        seconds = self._steps_s(count)
        last_s = seconds - self._steps_s(count - 1)
        if not self._mixed:
            self.busy_s += seconds
        self.steps += count
        self._segment_start_s += seconds
        self.held_tokens += rows * count
        self.left_tokens -= rows * count
        self._gaps.note(self._segment, last_s)
        while (request := self._ends.pop_due(self.steps)) is not None:
            self._complete(request)

    def _complete(self, request: SimRequest) -> None:
        self._drop(request)
        request.last_token_s = self._segment_start_s
        if request in self._leaving:
            self._leaving.remove(request)
            return
        length = request.generated_tokens
        self._finished.append(FinishedAnswer(length, cut_off=length >= request.max_tokens))
        if self.host is not None:
            self.host.decode_finished(request)

    def _drop(self, request: SimRequest) -> None:
        """Takes a running row out and books its tokens and gaps."""
        done = self.done_tokens(request)
        grown = done - request.generated_tokens
        self.held_tokens -= request.prompt_tokens + 1 + grown
        self.left_tokens -= request.max_tokens - done
        request.prompt_tokens += grown
        request.generated_tokens = done
        request.token_clock_s = self._segment_start_s
        if grown > 0:
            request.worst_gap_s = max(request.worst_gap_s, self._gaps.since(request.joined_segment))
        del self.running[request.name]
        del self.holders[request.name]
        self.tally.decoding -= 1

    def begin(self) -> None:
        """Starts a step or a run of steps now: joins what landed, makes room, takes prompts along."""
        self.is_settling = True
        self._version += 1
        self._cut_pending = self._mixed = False
        self._segment += 1
        self._segment_start_s = self._events.now_s
        for request in self._leaving:
            if request.name in self.running:
                self._drop(request)
        self._leaving.clear()
        self.admit()
        self._join()
        self._make_room()
        prompts = self.prompts
        chunks = prompts.choose() if prompts is not None and prompts.prompts else ()
        self.is_settling = False
        rows = len(self.running)
        if rows:
            self._constant_s = self._profile.decode_constant_s(rows)
        if prompts is not None and chunks and rows:
            seconds = prompts.begin(chunks, rows, self.held_tokens)
            self._constant_s = seconds - self._profile.decode_read_s * self.held_tokens
            self._mixed = True
            self._plan(1)
        elif prompts is not None and chunks:
            prompts.run_alone(chunks)
        elif rows:
            # The policy of the prompts that wait is asked before every step.
            most = 1 if prompts is not None and prompts.prompts else self._steps_to_change(rows)
            self._plan(min(most, self.ask_every) if self._wants() else most)
        elif self.is_empty and self.host is not None:
            self.host.decode_idle(self)

    def _make_room(self) -> None:
        """Takes pages from the rows that joined last until every other one can grow by a token."""
        capacity = self._profile.capacity_tokens
        while self.used_tokens + len(self.running) > capacity and self.running:
            if len(self.running) == 1 and self.used_tokens == self.held_tokens:
                return
            self._preempt(next(reversed(self.running.values())))

    def _steps_to_change(self, rows: int) -> int:
        """Steps until a row ends or memory is full."""
        room = max(1, (self._profile.capacity_tokens - self.used_tokens) // rows)
        return max(1, min(self._ends.next_step() - self.steps, room))

    def _join(self) -> None:
        room = self._max_rows - len(self.running)
        joining, self.joining = self.joining[:room], self.joining[room:]
        for request in joining:
            self.reserved_tokens -= request.prompt_tokens + 1
            self.held_tokens += request.prompt_tokens + 1
            self.running[request.name] = request
            request.joined_step = self.steps
            request.joined_segment = self._segment
            left = request.output_tokens - request.generated_tokens
            self._ends.add(self.steps + left, request)
        if joining:
            self.tally.decoding += len(joining)
            rows = len(self.running)
            step_s = self._profile.decode_constant_s(rows) + self._profile.decode_read_s * self.held_tokens
            for request in joining:
                first_gap_s = self._segment_start_s + step_s - request.token_clock_s
                request.worst_gap_s = max(request.worst_gap_s, first_gap_s)
