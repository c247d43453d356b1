"""Sends a request to its workers and sees to its one ending.

REST and gRPC hand a validated request to `start`. Admission, placement and submission happen in one
turn of the event loop, so every refusal comes before any worker has done anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twolane.core.errors import DeadlineExceeded, Draining, Overloaded, Unavailable
from twolane.core.request import Phase, SamplingParams
from twolane.policies.placement import Placement
from twolane.router.answer import Answer
from twolane.router.answer_text import AnswerText
from twolane.router.cluster import Cluster
from twolane.router.generation import Generation, GenerationRequest, Sink
from twolane.router.leg import Leg
from twolane.router.metrics import RouterMetrics
from twolane.router.placing import Placer
from twolane.router.sampling import seed_of_choice
from twolane.router.sessions import WorkerSession
from twolane.router.tokenizer import Tokenizer
from twolane.router.worker_books import Charge
from twolane.rpc.convert import sampling_to_proto
from twolane.rpc.words import lane_to_proto, phase_to_proto
from twolane.v1 import worker_pb2

RETRY_OVERLOADED_S = 1.0
RETRY_UNAVAILABLE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Submission:
    """A message that is ready to be sent."""

    session: WorkerSession
    leg: Leg
    message: worker_pb2.Submit


class Dispatcher:
    """Runs requests.

    Attributes:
        running: requests that are being served.
        waiting: answers whose first token has not come.
        draining: new requests are refused.
    """

    def __init__(
        self, cluster: Cluster, placer: Placer, tokenizer: Tokenizer, metrics: RouterMetrics, max_waiting: int
    ) -> None:
        self.running: set[Generation] = set()
        self.waiting = 0
        self.draining = False
        self.placer = placer
        self._cluster = cluster
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._idle: asyncio.Future[None] | None = None
        self._timers: dict[Generation, asyncio.TimerHandle] = {}

    def check_admission(self, n_answers: int) -> None:
        """Raises Draining, Overloaded or Unavailable when so many new answers can't be taken now."""
        if self.draining:
            raise Draining("this router is about to stop", retry_after_s=RETRY_OVERLOADED_S)
        if n_answers + self.waiting > self._max_waiting:
            raise Overloaded(
                f"{self.waiting} answers wait for their first token already; retry later",
                retry_after_s=RETRY_OVERLOADED_S,
            )

    def start(self, request: GenerationRequest, hashes: Sequence[Sequence[bytes]], sink: Sink) -> Generation:
        """Sends every answer of the request to its workers.

        Args:
            request: what to do.
            hashes: page names of each prompt.
            sink: takes what comes; not called before this returns.

        Raises:
            Draining, Overloaded, Unavailable: nobody can take it now; nothing was sent.
        """
        self.check_admission(len(request.prompts) * request.n)
        generation = Generation(request, sink, self)
        submissions: list[_Submission] = []
        try:
            for number, prompt in enumerate(request.prompts):
                for choice in range(request.n):
                    sampling = request.sampling[number]
                    sampling = replace(sampling, seed=seed_of_choice(sampling.seed, choice))
                    placement = self._place(prompt, hashes[number], sampling)
                    answer = self._answer(generation, prompt, sampling)
                    submissions += self._prepare(answer, prompt, sampling, placement)
        except Unavailable:
            for submission in submissions:
                submission.leg.close()
            raise
        for submission in submissions:
            submission.session.submit(submission.leg, submission.message)
        self._begin(generation)
        return generation

    async def wait_idle(self, timeout_s: float) -> None:
        """Returns when nothing runs any more, or after the timeout."""
        if self.running:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)

    def answer_began(self, generation: Generation, answer: Answer) -> None:
        """See generation.Observer."""
        self.waiting -= 1
        self._metrics.first_token(generation.request, answer.lane)

    def generation_over(self, generation: Generation) -> None:
        """See generation.Observer."""
        self.running.discard(generation)
        self.waiting -= sum(not answer.has_first for answer in generation.answers)
        self._timers.pop(generation).cancel()
        if not self.running and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._metrics.ended(generation, generation.usage())
        if generation.error is None:
            for answer in generation.answers:
                self.placer.learn_length(answer.text.n_tokens)

    def _begin(self, generation: Generation) -> None:
        request = generation.request
        self.running.add(generation)
        self.waiting += len(generation.answers)
        self._timers[generation] = asyncio.get_running_loop().call_later(
            request.timeout_s, self._time_out, generation
        )
        self._metrics.dispatched(request)

    def _time_out(self, generation: Generation) -> None:
        seconds = generation.request.timeout_s
        generation.fail(DeadlineExceeded(f"the request's time of {seconds:.3g} s is over"))

    def _place(self, prompt: list[int], hashes: Sequence[bytes], sampling: SamplingParams) -> Placement:
        placement = self.placer.place(len(prompt), hashes, sampling.max_tokens)
        if placement.no_capacity:
            raise Unavailable(f"{placement.no_capacity}; retry later", retry_after_s=RETRY_UNAVAILABLE_S)
        return placement

    def _answer(self, generation: Generation, prompt: list[int], sampling: SamplingParams) -> Answer:
        request = generation.request
        context = prompt if request.continues_prompt else ()
        text = AnswerText(self._tokenizer.fast, request.stop, sampling.min_tokens, context)
        answer = Answer(generation, len(generation.answers), text, self._metrics)
        generation.add(answer)
        return answer

    def _prepare(
        self, answer: Answer, prompt: list[int], sampling: SamplingParams, placement: Placement
    ) -> list[_Submission]:
        """The messages for the one or two workers of an answer, counted in their books from now on."""
        request = answer.request
        shared = worker_pb2.Submit(
            request_id=f"{request.request_id}-{answer.index}",
            prompt_tokens=prompt,
            sampling=sampling_to_proto(sampling),
            lane=lane_to_proto(placement.lane),
            timeout_ms=max(1, int(request.timeout_s * 1000)),
            priority=request.priority,
            cache_salt=request.cache_salt,
            traceparent=request.traceparent,
            ttft_slo_ms=request.ttft_slo_ms,
        )
        now_s = time.monotonic()
        tokens = len(prompt) + self.placer.predicted_tokens(sampling.max_tokens)
        pages = -(-tokens // self.placer.page_tokens)
        first = self._cluster.session(placement.prefill_id)
        if placement.decode_id == placement.prefill_id:
            charge = Charge(placement.uncached_tokens, pages, 1, now_s)
            leg = Leg(first, charge, answer.on_first_events, answer.on_lost)
            answer.attach(placement.lane, leg, None)
            return [_Submission(first, leg, _with_phase(shared, Phase.BOTH, None))]
        second = self._cluster.session(placement.decode_id)
        prefill = Leg(
            first, Charge(placement.uncached_tokens, 0, 0, now_s), answer.on_first_events, answer.on_lost
        )
        decode = Leg(second, Charge(0, pages, 1, now_s), answer.on_decode_events, answer.on_lost)
        answer.attach(placement.lane, prefill, decode)
        # Decode first: it reserves pages while the prompt still queues.
        return [
            _Submission(second, decode, _with_phase(shared, Phase.DECODE, first)),
            _Submission(first, prefill, _with_phase(shared, Phase.PREFILL, second)),
        ]


def _with_phase(shared: worker_pb2.Submit, phase: Phase, peer: WorkerSession | None) -> worker_pb2.Submit:
    message = worker_pb2.Submit()
    message.CopyFrom(shared)
    message.phase = phase_to_proto(phase)
    if peer is not None:
        message.peer.worker_id = peer.worker_id
        message.peer.incarnation = peer.info.incarnation
        message.peer.address = peer.info.address
    return message
