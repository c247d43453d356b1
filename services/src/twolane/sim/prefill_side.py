"""The prefill half of a simulated worker: a queue under the live policy, one batch at a time.

It decides when the worker's step loop would: at arrivals while nothing runs, at the end of every step, and
when pages or offers come free. On a worker that decodes, steps carry both (see decode_side).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from twolane.core.request import Lane
from twolane.policies.lanes import FitsBoundary, lane_of
from twolane.policies.prefill import Chunk, PrefillDecision, PrefillPolicy, PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings
from twolane.sim.decode_side import DecodeSide
from twolane.sim.events import EventQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest
from twolane.sim.tally import Tally

# Above this share of pages in completed prompts that wait for their transfer, only prompts are computed
# whose pages can leave: as the workers' max_pinned_share.
PINNED_SHARE = 0.5


class PrefillHost(Protocol):
    """What the cluster does when prompts advance."""

    def prefill_begun(self, request: SimRequest, side: PrefillSide) -> None:
        """The first chunk of the prompt runs."""

    def prefill_finished(self, request: SimRequest, side: PrefillSide) -> None:
        """The prompt is computed and its first token sampled."""

    def prefill_idle(self, side: PrefillSide) -> None:
        """Nothing waits any more."""

    def offered(self, request: SimRequest) -> bool:
        """Whether the pages of a prompt can leave once it is computed, or stay here."""


class PrefillSide:
    """Queue, policy memory and the running batch of one worker.

    Attributes:
        answers: the decode half of the worker, which keeps the books of its pages.
        short_backlog_s, long_backlog_s: seconds of queued work by the profile, for routing.
    """

    def __init__(
        self,
        events: EventQueue,
        profile: EngineProfile,
        policy: PrefillPolicy,
        settings: PrefillSettings,
        noise: Callable[[], float],
    ) -> None:
        self.host: PrefillHost | None = None
        self.answers: DecodeSide | None = None
        self.tally = Tally()
        self.index = 0
        self.requests: dict[str, SimRequest] = {}
        self.prompts: dict[str, WaitingPrefill] = {}
        self.memory: Any = None
        self.boundary_tokens = settings.short_max_uncached_tokens
        self.short_backlog_s = self.long_backlog_s = 0.0
        self.busy_s = 0.0
        self.busy_until_s = 0.0
        self.egress_free_s = 0.0
        self.batches = 0
        self.decisions: list[tuple[float, PrefillDecision]] | None = None
        self._events = events
        self._profile = profile
        self._policy = policy
        self._most_pinned = PINNED_SHARE * profile.capacity_tokens
        self._fitting = policy if isinstance(policy, FitsBoundary) else None
        self._noise = noise
        self._started: set[str] = set()
        self._fresh: list[SimRequest] = []
        self._stale: set[str] = set()
        self._costs: dict[str, float] = {}
        self._last_s: float | None = None
        self._last_lane: Lane | None = None
        self._running: tuple[Chunk, ...] = ()
        self._whole = True
        self._ending = False
        self._epoch = 0
        self._wake = 0

    @property
    def is_busy(self) -> bool:
        """Whether a step with prompts runs, or is being settled."""
        return self._ending or bool(self._running)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.prompts

    def load_s(self) -> float:
        """Seconds until everything queued now is computed, about."""
        left_s = self.busy_until_s - self._events.now_s if self._running else 0.0
        return self.short_backlog_s + self.long_backlog_s + left_s

    def long_left_s(self) -> float:
        """Seconds until the chunk of a long prompt that runs now ends; 0 when none does."""
        is_long = self._running and self._last_lane is Lane.LONG
        return self.busy_until_s - self._events.now_s if is_long else 0.0

    def add(self, request: SimRequest, *, front: bool = False) -> None:
        """Queues a prompt; its lane is fixed now. In front: an answer that lost its pages."""
        uncached, name = request.uncached_tokens, request.name
        request.lane = lane_of(uncached, self.boundary_tokens)
        self.requests[name] = request
        prompt = WaitingPrefill(
            name,
            request.queued_s,
            uncached,
            request.cached_tokens,
            request.lane,
            request.deadline_s,
            request.priority,
        )
        if front:
            self.prompts = {name: prompt, **self.prompts}
        else:
            self.prompts[name] = prompt
        cost_s = self._profile.prefill_s(((uncached, request.cached_tokens),))
        if request.lane is Lane.SHORT:
            # Short prompts share a step, so each adds less than a step of its own.
            cost_s = min(cost_s, self._profile.token_s * uncached + self._profile.overhead_s)
            self.short_backlog_s += cost_s
            self.tally.short += 1
        else:
            self.long_backlog_s += cost_s
            self.tally.long += 1
        self._costs[name] = cost_s
        if not self._running:
            self.decide()

    def remove(self, name: str) -> SimRequest | None:
        """Takes a prompt out (abort) and gives its pages back; a chunk of it that runs is for nothing."""
        freed = self.answers.pages.free(name) if self.answers is not None else 0
        request = self.requests.pop(name, None)
        if request is not None:
            self._forget(name, request.lane)
            # The same request may come back before the batch ends; that chunk is not for it.
            self._stale.update(chunk.request_id for chunk in self._running if chunk.request_id == name)
        if freed and self.answers is not None:
            self.answers.admit()
        self.decide()
        return request

    def fail(self) -> list[SimRequest]:
        """Loses everything; gives the requests back."""
        lost = list(self.requests.values())
        self._epoch += 1
        for name in list(self.requests):
            self._forget(name, self.requests.pop(name).lane)
        self._running, self.memory, self._last_s = (), None, None
        self._stale.clear()
        return lost

    def decide(self, _: Any = None) -> None:
        """Asks the policy and does what it says; with answers running, once their step has ended."""
        if self._running or self._ending or not self.prompts:
            return
        if self.answers is not None and self.answers.running:
            self.answers.cut()
            return
        chunks = self.choose()
        if chunks:
            self.run_alone(chunks)

    def choose(self) -> tuple[Chunk, ...]:
        """A batch for the next step, like the live queue: of what has or finds pages, else nothing."""
        waiting = self._allowed()
        if not waiting:
            return ()
        before = (self.memory, self._last_s)
        chunks, whole = self._ask(waiting)
        if chunks or whole:
            return chunks
        started = tuple(prompt for prompt in waiting if prompt.request_id in self._started)
        if not started:
            return ()
        self.memory, self._last_s = before
        return self._ask(started)[0]

    def _allowed(self) -> tuple[WaitingPrefill, ...]:
        """All prompts, or those whose pages can leave while too many are pinned."""
        answers, host = self.answers, self.host
        if answers is None or host is None or answers.pages.pinned_tokens <= self._most_pinned:
            return tuple(self.prompts.values())
        requests = self.requests
        return tuple(each for key, each in self.prompts.items() if host.offered(requests[key]))

    def _ask(self, waiting: tuple[WaitingPrefill, ...]) -> tuple[tuple[Chunk, ...], bool]:
        now_s = self._events.now_s
        decision = self._policy.decide(
            now_s, PrefillView(waiting, self.memory, self._last_s, self._last_lane)
        )
        self.memory, self._last_s = decision.memory, None
        if self._fitting is not None:
            self.boundary_tokens = self._fitting.boundary_tokens(self.memory)
        if self.decisions is not None:
            self.decisions.append((now_s, decision))
        self._wake += 1
        if decision.chunks:
            chunks = self._with_pages(decision.chunks)
            self._whole = len(chunks) == len(decision.chunks)
            return chunks, self._whole
        if decision.wake_s is None:
            raise RuntimeError(f"policy {self._policy.name} neither runs nor wakes with work queued")
        self._events.at(decision.wake_s, self._woken, self._wake)
        return (), True

    def _woken(self, wake: int) -> None:
        if wake == self._wake:
            self.decide()

    def _with_pages(self, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        """The chunks up to the first whose prompt finds no pages."""
        started, answers = self._started, self.answers
        for position, chunk in enumerate(chunks):
            name = chunk.request_id
            if name in started:
                continue
            if answers is not None and not answers.take(name, self.requests[name].prompt_tokens):
                return chunks[:position]
            started.add(name)
            self._fresh.append(self.requests[name])
        return chunks

    def run_alone(self, chunks: tuple[Chunk, ...]) -> None:
        """Runs a step of prompts alone."""
        self.begin(chunks, 0, 0)
        self._events.at(self.busy_until_s, self._end, self._epoch)

    def begin(self, chunks: tuple[Chunk, ...], rows: int, held_tokens: int) -> float:
        """Begins a step of these chunks and of `rows` answers; its seconds. The caller ends it."""
        prompts = self.prompts
        work = [(chunk.tokens, prompts[chunk.request_id].cached_tokens) for chunk in chunks]
        seconds = self._profile.mixed_s(work, rows, held_tokens) * self._noise()
        self._running = chunks
        self._last_lane = prompts[chunks[-1].request_id].lane
        # A batch cut short by want of pages tells the policy nothing about what it asked for.
        self._last_s = seconds if self._whole else None
        self.busy_s += seconds
        self.batches += 1
        self.busy_until_s = self._events.now_s + seconds
        fresh, self._fresh = self._fresh, []
        if self.host is not None:
            for request in fresh:
                self.host.prefill_begun(request, self)
        return seconds

    def _end(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self.settle()
        if self.answers is not None and self.answers.joining:
            self.answers.begin()
        else:
            self.decide()
        if not self.prompts and self.host is not None:
            self.host.prefill_idle(self)

    def settle(self) -> None:
        """Ends the running step: prompts advance, complete ones leave."""
        chunks, self._running = self._running, ()
        stale, self._stale = self._stale, set()
        self._ending = True
        for chunk in chunks:
            prompt = self.prompts.get(chunk.request_id)
            if prompt is not None and chunk.request_id not in stale:
                self._advance(prompt, chunk.tokens)
        self._ending = False

    def _advance(self, prompt: WaitingPrefill, tokens: int) -> None:
        name = prompt.request_id
        left = prompt.uncached_tokens - tokens
        now_s = self._events.now_s
        if self.requests[name].target != self.index:
            link_s = self._profile.transfer_s(tokens)
            self.egress_free_s = max(self.egress_free_s, now_s) + link_s
        if left > 0:
            self.prompts[name] = WaitingPrefill(
                name,
                prompt.arrival_s,
                left,
                prompt.cached_tokens + tokens,
                prompt.lane,
                prompt.deadline_s,
                prompt.priority,
            )
            done_s = self._costs[name] * tokens / prompt.uncached_tokens
            self._costs[name] -= done_s
            self._lessen(prompt.lane, done_s)
            return
        request = self.requests.pop(name)
        self._forget(name, prompt.lane)
        if self.host is not None:
            self.host.prefill_finished(request, self)

    def _forget(self, name: str, lane: Lane) -> None:
        del self.prompts[name]
        self._started.discard(name)
        self._lessen(lane, self._costs.pop(name))
        if lane is Lane.SHORT:
            self.tally.short -= 1
        else:
            self.tally.long -= 1

    def _lessen(self, lane: Lane, seconds: float) -> None:
        if lane is Lane.SHORT:
            self.short_backlog_s = max(0.0, self.short_backlog_s - seconds)
        else:
            self.long_backlog_s = max(0.0, self.long_backlog_s - seconds)


def noise_source(rng: np.random.Generator, spread: float) -> Callable[[], float]:
    """Factors around 1 (lognormal) by which measured steps differ from the profile; 1 without spread."""
    if spread <= 0.0:
        return lambda: 1.0
    drawn: list[float] = []

    def draw() -> float:
        if not drawn:
            drawn.extend(rng.lognormal(0.0, spread, 4096).tolist())
        return drawn.pop()

    return draw
