"""Sends a request to its workers and sees to its one ending.

REST and gRPC hand a validated request to `start`. Admission, placement and submission happen in one
turn of the event loop, so every refusal comes before any worker has done anything. What no worker can
take while none runs waits in the hold, if there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twolane.core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    Overloaded,
    TwolaneError,
    Unavailable,
)
from twolane.router.answer import Answer, AnswerTask
from twolane.router.answer_text import AnswerText
from twolane.router.cluster import Cluster
from twolane.router.generation import Generation, GenerationRequest, Sink
from twolane.router.hold import Hold
from twolane.router.metrics import RouterMetrics
from twolane.router.placing import Placer
from twolane.router.sampling import seed_of_choice
from twolane.router.submission import Submission, Submitter
from twolane.router.tokenizer import Tokenizer

RETRY_OVERLOADED_S = 1.0
# How often an answer that its workers gave up is sent to others.
MAX_ATTEMPTS = 3
# Held requests that are sent in one turn of the event loop.
_RELEASED_PER_TURN = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait: answers for their first token, and requests for workers to start."""

    max_waiting: int
    hold: Hold


class Dispatcher:
    """Runs requests.

    Attributes:
        running: requests that are being served.
        waiting: answers whose first token has not come.
        draining: new requests are refused.
        hold: requests that wait for workers to start.
    """

    def __init__(
        self,
        cluster: Cluster,
        submitter: Submitter,
        placer: Placer,
        tokenizer: Tokenizer,
        metrics: RouterMetrics,
        bounds: Bounds,
    ) -> None:
        self.running: set[Generation] = set()
        self.waiting = 0
        self.draining = False
        self.hold = bounds.hold
        self.placer = placer
        self._cluster = cluster
        self._submitter = submitter
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._max_waiting = bounds.max_waiting
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
        """Sends every answer of the request to its workers, or holds them all while there are none.

        Args:
            request: what to do.
            hashes: page names of each prompt.
            sink: takes what comes; not called before this returns.

        Raises:
            Draining, Overloaded, Unavailable: nobody can take it now; nothing was sent.
        """
        self.check_admission(len(request.prompts) * request.n)
        generation = Generation(request, sink, self)
        for number, prompt in enumerate(request.prompts):
            for choice in range(request.n):
                sampling = request.sampling[number]
                sampling = replace(sampling, seed=seed_of_choice(sampling.seed, choice))
                self._answer(generation, AnswerTask(prompt, sampling, hashes[number]))
        try:
            submissions = self._prepare(generation.answers, request.timeout_s)
        except Unavailable as error:
            if not self._may_hold():
                raise
            self.hold.check_room(generation)
            for answer in generation.answers:
                answer.lane = self.hold.lane(answer.uncached_tokens)
            self._begin(generation)
            self.hold.keep(generation, generation.answers, error.message)
        else:
            self._begin(generation)
            self._send(generation, submissions)
        self._metrics.arrived(generation)
        return generation

    async def follow(self) -> None:
        """Sends what is held whenever workers may have come; runs until cancelled."""
        while True:
            changed = self._cluster.next_change()
            self._forget_gone()
            if not self._cluster.not_ready():
                await self._release()
            await changed

    async def wait_idle(self, timeout_s: float) -> None:
        """Returns when nothing runs any more, or after the timeout."""
        if self.running:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)

    def answer_began(self, generation: Generation, answer: Answer) -> None:
        """See generation.Observer."""
        self.waiting -= 1
        self._metrics.first_token(generation.request, answer)

    def retry(self, generation: Generation, answer: Answer, error: TwolaneError) -> bool:
        """See generation.Observer."""
        if self.draining or answer.attempts >= MAX_ATTEMPTS:
            return False
        try:
            submissions = self._submitter.prepare(answer, self._left_s(generation))
        except Unavailable:
            # The last worker may have ended because its model fell asleep in this moment.
            if not (self.hold.enabled and isinstance(error, Unavailable)):
                return False
            self.hold.keep(generation, [answer], error.message)
            return True
        self._metrics.retried()
        for submission in submissions:
            submission.send()
        return True

    def generation_over(self, generation: Generation) -> None:
        """See generation.Observer."""
        self.running.discard(generation)
        self.hold.drop(generation)
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

    def _prepare(self, answers: Sequence[Answer], timeout_s: float) -> list[Submission]:
        """All messages of several answers, or none: raises Unavailable."""
        submissions: list[Submission] = []
        try:
            for answer in answers:
                submissions += self._submitter.prepare(answer, timeout_s)
        except Unavailable:
            for submission in submissions:
                submission.leg.close()
            raise
        return submissions

    def _send(self, generation: Generation, submissions: Sequence[Submission]) -> None:
        for submission in submissions:
            submission.send()
        if not any(answer.attempts for answer in generation.answers):
            self._metrics.dispatched(generation.request)

    def _may_hold(self) -> bool:
        """A prompt too large for the workers that run need not wait for more of them."""
        return self.hold.enabled and self._cluster.not_ready() is not None

    async def _release(self) -> None:
        for number, (generation, answers) in enumerate(self.hold):
            if number and number % _RELEASED_PER_TURN == 0:
                await asyncio.sleep(0)
            if generation.ended:
                continue
            try:
                self._send_held(generation, answers)
            except TwolaneError as error:
                generation.fail(error)

    def _forget_gone(self) -> None:
        """A worker that gave up on a held answer and has gone since may come back under its name."""
        accepting = {session.worker_id for session in self._cluster.sessions if session.accepts}
        for _, answers in self.hold:
            for answer in answers:
                answer.avoid &= accepting

    def _send_held(self, generation: Generation, answers: Sequence[Answer]) -> None:
        """Sends held answers, or leaves them; raises why they can't be served at all."""
        for answer in answers:
            answer.task = self._fitted(answer.task)
        try:
            submissions = self._prepare(answers, self._left_s(generation))
        except Unavailable:
            if self._cluster.not_ready() or any(answer.avoid for answer in answers):
                return
            raise
        self.hold.drop(generation)
        if any(answer.attempts for answer in answers):
            self._metrics.retried()
        self._send(generation, submissions)

    def _fitted(self, task: AnswerTask) -> AnswerTask:
        """The task within the context of workers that were not known when it was checked."""
        fingerprint = self._cluster.fingerprint
        asked_tokens = len(task.prompt) - task.generated_tokens
        room = task.sampling.max_tokens if fingerprint is None else fingerprint.max_model_len - asked_tokens
        if room < 1:
            raise ContextTooLong(
                f"the prompt has {asked_tokens} tokens; with one token of answer that exceeds the "
                "context of the workers that have started"
            )
        sampling = task.sampling
        if sampling.max_tokens <= room:
            return task
        sampling = replace(sampling, max_tokens=room, min_tokens=min(sampling.min_tokens, room))
        return replace(task, sampling=sampling)

    def _left_s(self, generation: Generation) -> float:
        return self._timers[generation].when() - asyncio.get_running_loop().time()

    def _time_out(self, generation: Generation) -> None:
        seconds = generation.request.timeout_s
        generation.fail(DeadlineExceeded(f"the request's time of {seconds:.3g} s is over"))

    def _answer(self, generation: Generation, task: AnswerTask) -> Answer:
        request = generation.request
        context = task.prompt if request.continues_prompt else ()
        text = AnswerText(self._tokenizer.fast, request.stop, task.sampling.min_tokens, context)
        answer = Answer(generation, task, text, self._metrics)
        generation.add(answer)
        return answer
