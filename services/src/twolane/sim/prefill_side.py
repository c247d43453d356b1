"""The prefill half of a simulated worker: a queue under the live policy, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from twolane.core.request import Lane
from twolane.policies.lanes import FitsBoundary, lane_of
from twolane.policies.prefill import Chunk, PrefillDecision, PrefillPolicy, PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings
from twolane.sim.events import EventQueue
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest


class PrefillHost(Protocol):
    """What the cluster does when prompts advance."""

    def prefill_started(self, request: SimRequest) -> None:
        """The first chunk of a prompt begins."""

    def prefill_batch(self, side: PrefillSide, seconds: float) -> None:
        """A batch begins that takes so long."""

    def prefill_finished(self, request: SimRequest, side: PrefillSide) -> None:
        """The prompt is computed and its first token sampled."""

    def prefill_idle(self, side: PrefillSide) -> None:
        """Nothing waits any more."""


class PrefillSide:
    """Queue, policy memory and the running batch of one worker."""

    def __init__(
        self,
        events: EventQueue,
        profile: EngineProfile,
        policy: PrefillPolicy,
        settings: PrefillSettings,
        noise: Callable[[], float],
    ) -> None:
        self.host: PrefillHost | None = None
        self.index = 0
        self.requests: dict[str, SimRequest] = {}
        self.prompts: dict[str, WaitingPrefill] = {}
        self.memory: Any = None
        self.boundary_tokens = settings.short_max_uncached_tokens
        # Seconds of queued work per lane by the profile, for routing.
        self.backlog_s = {Lane.SHORT: 0.0, Lane.LONG: 0.0}
        self.busy_s = 0.0
        self.busy_until_s = 0.0
        self.egress_free_s = 0.0
        self.batches = 0
        self.decisions: list[tuple[float, PrefillDecision]] | None = None
        self._events = events
        self._profile = profile
        self._policy = policy
        self._fitting = policy if isinstance(policy, FitsBoundary) else None
        self._noise = noise
        self._started: set[str] = set()
        self._stale: set[str] = set()
        self._costs: dict[str, float] = {}
        self._last_s: float | None = None
        self._last_lane: Lane | None = None
        self._running: tuple[Chunk, ...] = ()
        self._epoch = 0
        self._wake = 0

    @property
    def is_busy(self) -> bool:
        """Whether a batch runs."""
        return bool(self._running)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.prompts

    def load_s(self) -> float:
        """Seconds until everything queued now is computed, about."""
        left_s = self.busy_until_s - self._events.now_s if self._running else 0.0
        return self.backlog_s[Lane.SHORT] + self.backlog_s[Lane.LONG] + left_s

    def add(self, request: SimRequest) -> None:
        """Queues a prompt; its lane is fixed now."""
        uncached = request.uncached_tokens
        request.lane = lane_of(uncached, self.boundary_tokens)
        request.queued_s = self._events.now_s
        name = request.name
        self.requests[name] = request
        self.prompts[name] = WaitingPrefill(
            name,
            request.queued_s,
            uncached,
            request.cached_tokens,
            request.lane,
            request.deadline_s,
            request.priority,
        )
        cost_s = self._profile.prefill_s(((uncached, request.cached_tokens),))
        if request.lane is Lane.SHORT:
            # Short prompts share a step, so each adds less than a step of its own.
            cost_s = min(cost_s, self._profile.token_s * uncached + self._profile.overhead_s)
        self._costs[name] = cost_s
        self.backlog_s[request.lane] += cost_s
        if not self._running:
            self.decide()

    def remove(self, name: str) -> SimRequest | None:
        """Takes a prompt out (abort); a chunk of it that runs is computed for nothing."""
        request = self.requests.pop(name, None)
        if request is not None:
            self._forget(name, request.lane)
            # The same request may come back before the batch ends; that chunk is not for it.
            self._stale.update(chunk.request_id for chunk in self._running if chunk.request_id == name)
            if not self._running:
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
        """Asks the policy and does what it says."""
        if self._running or not self.prompts:
            return
        now_s = self._events.now_s
        view = PrefillView(tuple(self.prompts.values()), self.memory, self._last_s, self._last_lane)
        decision = self._policy.decide(now_s, view)
        self.memory = decision.memory
        if self._fitting is not None:
            self.boundary_tokens = self._fitting.boundary_tokens(self.memory)
        if self.decisions is not None:
            self.decisions.append((now_s, decision))
        self._wake += 1
        if decision.chunks:
            self._start(decision.chunks)
        elif decision.wake_s is not None:
            self._events.at(decision.wake_s, self._woken, self._wake)
        else:
            raise RuntimeError(f"policy {self._policy.name} neither runs nor wakes with work queued")

    def _woken(self, wake: int) -> None:
        if wake == self._wake:
            self.decide()

    def _start(self, chunks: tuple[Chunk, ...]) -> None:
        prompts = self.prompts
        work = [(chunk.tokens, prompts[chunk.request_id].cached_tokens) for chunk in chunks]
        seconds = self._profile.prefill_s(work) * self._noise()
        self._running = chunks
        self._last_s, self._last_lane = seconds, prompts[chunks[0].request_id].lane
        self.busy_s += seconds
        self.batches += 1
        self.busy_until_s = self._events.now_s + seconds
        if self.host is not None:
            self.host.prefill_batch(self, seconds)
            for chunk in chunks:
                if chunk.request_id not in self._started:
                    self._started.add(chunk.request_id)
                    self.host.prefill_started(self.requests[chunk.request_id])
        self._events.at(self.busy_until_s, self._end, self._epoch)

    def _end(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        chunks, self._running = self._running, ()
        stale, self._stale = self._stale, set()
        for chunk in chunks:
            prompt = self.prompts.get(chunk.request_id)
            if prompt is not None and chunk.request_id not in stale:
                self._advance(prompt, chunk.tokens)
        if self.prompts:
            self.decide()
        elif self.host is not None:
            self.host.prefill_idle(self)

    def _advance(self, prompt: WaitingPrefill, tokens: int) -> None:
        name = prompt.request_id
        left = prompt.uncached_tokens - tokens
        now_s = self._events.now_s
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
            self.backlog_s[prompt.lane] -= done_s
            return
        request = self.requests.pop(name)
        self._forget(name, prompt.lane)
        if self.host is not None:
            self.host.prefill_finished(request, self)

    def _forget(self, name: str, lane: Lane) -> None:
        del self.prompts[name]
        self._started.discard(name)
        self.backlog_s[lane] = max(0.0, self.backlog_s[lane] - self._costs.pop(name))


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
