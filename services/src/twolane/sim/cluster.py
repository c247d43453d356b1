"""The simulated cluster: routes requests through prefill, transfer and decode, and moves workers.

`Simulation.run` plays a list of trace requests to the end and returns what clients saw. Prefill and
decode policies and the role controller are the objects that live processes use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from twolane.core.request import Lane
from twolane.policies.decode import decode_by_name
from twolane.policies.lanes import lane_of
from twolane.policies.registry import SHORT_FIRST, by_name
from twolane.policies.roles import Group
from twolane.sim.decode_side import DecodeSide
from twolane.sim.events import EventQueue
from twolane.sim.groups import GroupKeeper
from twolane.sim.outcome import SimOutcome, TimeLine, outcome_of
from twolane.sim.placing import Placing
from twolane.sim.prefill_side import PrefillSide, noise_source
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import profile_by_name
from twolane.sim.request import SimRequest
from twolane.sim.routing import Router
from twolane.sim.settings import Failure, SimSettings
from twolane.sim.tally import Tally
from twolane.sim.worker import SimWorker
from twolane.workload.traces import TraceRequest

Progress = Callable[[float, int], None]
PROGRESS_EVERY = 20_000
# With all requests sent and none ended for so many virtual seconds, something is stuck.
GIVE_UP_S = 86_400.0
# Seconds after which a request that found no worker tries again.
RETRY_S = 0.1


class Simulation:
    """One cluster and one trace.

    Args:
        settings: the cluster.
        trace: what arrives.
        profile: of its engines; None: the one that the settings name.
    """

    def __init__(
        self, settings: SimSettings, trace: Sequence[TraceRequest], profile: EngineProfile | None = None
    ) -> None:
        self.settings = settings
        self.events = EventQueue()
        self.profile = profile or profile_by_name(settings.profile)
        if not settings.graphs:
            self.profile = replace(self.profile, graph_tokens=0)
        rng = np.random.default_rng(settings.seed)
        policy = by_name(settings.prefill_policy, settings.prefill)
        decode_policy = decode_by_name(settings.decode_policy, settings.decode)
        spread = self.profile.step_spread
        noise = noise_source(
            np.random.default_rng([settings.seed, 1]), settings.step_noise if spread is None else spread
        )
        self.tally = Tally()
        self.workers: list[SimWorker] = []
        for index in range(settings.worker_count):
            prefill = PrefillSide(self.events, self.profile, policy, settings.prefill, noise)
            decode = DecodeSide(self.events, self.profile, decode_policy, settings.max_rows)
            prefill.host = decode.host = self
            prefill.tally = decode.tally = self.tally
            is_mixed = index < settings.mixed_workers
            is_decode = not is_mixed and index >= settings.prefill_workers
            group = Group.DECODE if is_decode else Group.BOTH
            self.workers.append(SimWorker(index, group, prefill, decode, is_mixed))
        self.router = Router(rng, settings.prefill_policy in SHORT_FIRST)
        self.placing = self._live_placement() if settings.placement else None
        self.requests = self._requests(trace, rng)
        # Each request's own factor of the way to its worker and back.
        way_rng = np.random.default_rng([settings.seed, 2])
        self.ways = way_rng.lognormal(0.0, self.profile.way_spread, len(self.requests))
        self.groups = GroupKeeper(self)
        self.timeline = TimeLine()
        self.transferred_bytes = 0
        self._next = 0
        self._ended_s = 0.0
        self._open = len(self.requests)

    def run(self, progress: Progress | None = None) -> SimOutcome:
        """Plays the whole trace; calls `progress(virtual seconds, requests left)` now and then."""
        events, settings = self.events, self.settings
        for failure in settings.failures:
            events.at(failure.at_s, self._fail, failure)
        for abort in settings.aborts:
            events.at(abort.at_s, self._abort, abort.request)
        if settings.roles:
            events.at(settings.role_period_s, self._roles)
        events.at(0.0, self._sample)
        if self.requests:
            events.at(self.requests[0].arrival_s, self._arrive)
        limit = PROGRESS_EVERY
        while self._open > 0 and events.step():
            if self._next >= len(self.requests) and events.now_s > self._ended_s + GIVE_UP_S:
                break
            if progress is not None and events.processed >= limit:
                progress(events.now_s, self._open)
                limit += PROGRESS_EVERY
        if self._open > 0:
            raise RuntimeError(f"{self._open} requests never end: a policy left work behind")
        return outcome_of(self)

    def _live_placement(self) -> Placing:
        settings = self.settings
        boundary = settings.prefill.short_max_uncached_tokens
        return Placing(settings.placement, boundary, self.profile, settings.tpot_s, self.router.draw)

    def _requests(self, trace: Sequence[TraceRequest], rng: np.random.Generator) -> list[SimRequest]:
        settings = self.settings
        draws = rng.random(len(trace)).tolist()
        most_output, most_prompt = settings.decode.max_output_tokens, self.profile.capacity_tokens // 2
        made = []
        for index, (item, draw) in enumerate(zip(trace, draws, strict=True)):
            prompt = min(item.input_tokens, most_prompt)
            output = min(item.output_tokens, most_output)
            request = SimRequest(index, item.arrival_s, prompt, output, min(item.cached_tokens, prompt - 1))
            request.draw, request.max_tokens = draw, most_output
            request.is_short = request.uncached_tokens <= settings.short_tokens
            floor_s = self.profile.prefill_s(((request.uncached_tokens, request.cached_tokens),))
            slow_s = max(settings.long_ttft_s, settings.long_slowdown * floor_s)
            request.ttft_limit_s = settings.short_ttft_s if request.is_short else slow_s
            request.deadline_s = item.arrival_s + request.ttft_limit_s
            made.append(request)
        return made

    # Arrival and routing

    def _arrive(self, _: None) -> None:
        request = self.requests[self._next]
        self._next += 1
        if self._next < len(self.requests):
            self.events.at(self.requests[self._next].arrival_s, self._arrive)
        if self.profile.arrival_s > 0.0:
            way_s = self.profile.arrival_s * float(self.ways[request.index])
            self.events.at(self.events.now_s + way_s, self._place, request)
        else:
            self._place(request)

    def _place(self, request: SimRequest) -> None:
        """Sends a request to a prefill and a decode worker, or tries again when none is up."""
        if request.aborted:
            return
        lane = lane_of(request.uncached_tokens, self.workers[0].prefill.boundary_tokens)
        found = self._routed(request, lane)
        if found is None:
            self.events.at(self.events.now_s + RETRY_S, self._place, request)
            return
        worker, target = found
        request.skips = worker is target
        request.source, request.target = worker.index, target.index
        request.promised_tokens = request.prompt_tokens
        target.promised_tokens += request.promised_tokens
        request.prefilled = False
        request.queued_s = self.events.now_s
        self.groups.note_prompt(lane, request)
        # Both halves are submitted at once.
        if not request.skips and request.generated_tokens + 1 < request.output_tokens:
            target.decode.offer(request)
        worker.prefill.add(request)

    def _routed(self, request: SimRequest, lane: Lane) -> tuple[SimWorker, SimWorker] | None:
        """The prefill and the decode worker; the same one when the prompt skips disaggregation."""
        if self.placing is not None:
            return self.placing.place(self.events.now_s, request, self.workers)
        candidates = self.groups.prefill_workers(lane)
        if not candidates:
            return None
        if self.settings.mixed_workers:
            worker = self.router.mixed(candidates)
            return worker, worker
        targets = self.groups.decode_workers()
        if not targets:
            return None
        worker, target = self.router.prefill(candidates, request.uncached_tokens), self.router.decode(targets)
        if self.settings.skip_disaggregation and self.groups.skip_pays(request, worker, target):
            worker = target
        return worker, target

    def _abort(self, index: int) -> None:
        """The client is gone: both workers let go of the request."""
        request = self.requests[index]
        if request.aborted or request.generated_tokens >= request.output_tokens:
            return
        request.aborted = True
        self._open -= 1
        self._ended_s = self.events.now_s
        if request.source < 0:
            return
        self.workers[request.target].promised_tokens -= request.promised_tokens
        self.workers[request.target].decode.cancel(request)
        self.workers[request.source].prefill.remove(request.name)

    # Prefill host

    def prefill_begun(self, request: SimRequest, side: PrefillSide) -> None:
        """Its decode worker may give it pages now, in the order in which prompts begin."""
        if request.target != side.index:
            self.workers[request.target].decode.begun(request)

    def prefill_finished(self, request: SimRequest, side: PrefillSide) -> None:
        """Gives the first token to the client and the pages to the decode worker."""
        now_s = self.events.now_s
        if request.generated_tokens == 0:
            request.first_token_s = now_s
        else:
            request.worst_gap_s = max(request.worst_gap_s, now_s - request.token_clock_s)
        request.generated_tokens += 1
        request.token_clock_s = request.last_token_s = now_s
        request.prefilled = True
        worker = self.workers[side.index]
        if request.generated_tokens >= request.output_tokens:
            worker.decode.give_back(request.name)
            self.decode_finished(request)
        elif request.target == side.index:
            worker.decode.stay(request)
        else:
            worker.decode.pages.pin(request.name)
            if request.name in self.workers[request.target].decode.holders:
                self._send(request, side.egress_free_s)
        if worker.going_to is not None:
            self.events.at(now_s, self.groups.settle, worker)

    def prefill_idle(self, side: PrefillSide) -> None:
        """A drained worker changes its group."""
        self.groups.settle(self.workers[side.index])

    def offered(self, request: SimRequest) -> bool:
        """Whether a prompt's pages can leave its worker, or stay there."""
        return request.source == request.target or request.name in self.workers[request.target].decode.holders

    # Decode host

    def decode_admitted(self, request: SimRequest, side: DecodeSide) -> None:
        """Pages are reserved: what is computed is sent; what was held back may be computed."""
        source = self.workers[request.source].prefill
        if not request.prefilled:
            if self.workers[request.source].decode.pages.pinned_tokens > 0:
                source.decide()
            return
        link_s = self.profile.transfer_s(request.prompt_tokens)
        source.egress_free_s = max(source.egress_free_s, self.events.now_s) + link_s
        self._send(request, source.egress_free_s)

    def _send(self, request: SimRequest, sent_s: float) -> None:
        self.events.at(sent_s + self.profile.transfer_latency_s, self._landed, (request, request.lease))

    def _landed(self, arrival: tuple[SimRequest, int]) -> None:
        """Pages are at their decode worker: those at the prefill worker are free."""
        request, lease = arrival
        if lease == request.lease and not request.aborted:
            self.transferred_bytes += request.prompt_tokens * self.profile.kv_bytes_per_token
            self.workers[request.source].decode.give_back(request.name)
            self.workers[request.target].decode.landed(arrival)

    def decode_preempted(self, request: SimRequest, side: DecodeSide) -> None:
        """Computes what was lost again, on this worker, ahead of other prompts."""
        request.restart()
        self.workers[side.index].prefill.add(request, front=True)

    def decode_finished(self, request: SimRequest) -> None:
        """Counts the request off."""
        self._open -= 1
        self._ended_s = self.events.now_s
        worker = self.workers[request.target]
        worker.promised_tokens -= request.promised_tokens
        if worker.going_to is not None:
            self.groups.settle(worker)

    def decode_idle(self, side: DecodeSide) -> None:
        """A drained worker changes its group."""
        self.groups.settle(self.workers[side.index])

    # Failures, roles, samples

    def _fail(self, failure: Failure) -> None:
        """Loses a worker: prompts are queued elsewhere, answers go on from the tokens already sent."""
        worker = self.workers[failure.worker % len(self.workers)]
        worker.alive = False
        self.groups.changed()
        self.events.at(self.events.now_s + failure.down_s, self._recover, worker)
        lost = {request.name: request for request in chain(worker.prefill.fail(), worker.decode.fail())}
        for request in self.requests[: self._next]:
            elsewhere = request.source == worker.index and request.prefilled and not self._decodes(request)
            if elsewhere:
                lost[request.name] = request
        for request in lost.values():
            if not request.aborted:
                self._replay(request)

    def _decodes(self, request: SimRequest) -> bool:
        target = self.workers[request.target].decode
        ended = request.generated_tokens >= request.output_tokens or request.aborted
        return ended or request.name in target.running or request in target.joining

    def _replay(self, request: SimRequest) -> None:
        """Starts a request again elsewhere, from its prompt and the tokens already sent."""
        self.workers[request.source].prefill.remove(request.name)
        self.workers[request.target].prefill.remove(request.name)
        self.workers[request.target].decode.cancel(request)
        self.workers[request.target].promised_tokens -= request.promised_tokens
        request.lease += 1
        request.replays += 1
        request.promised_tokens = 0
        request.restart()
        self._place(request)

    def _recover(self, worker: SimWorker) -> None:
        worker.alive = True
        self.groups.changed()

    def _roles(self, _: None) -> None:
        self.groups.decide()
        if self._open > 0:
            self.events.at(self.events.now_s + self.settings.role_period_s, self._roles)

    def _sample(self, _: None) -> None:
        self.timeline.sample(self)
        if self._open > 0:
            self.events.at(self.events.now_s + self.settings.sample_s, self._sample)
