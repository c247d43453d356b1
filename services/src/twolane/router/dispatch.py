"""Sends a request to its workers and sees to its one ending.

REST and gRPC hand a validated request to `start`. Admission, placement and submission happen in one
turn of the event loop, so every refusal comes before any worker has done anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from twolane.core.errors import DeadlineExceeded, Draining, Overloaded, Unavailable
from twolane.router.answer import Answer, AnswerTask
from twolane.router.answer_text import AnswerText
from twolane.router.cluster import Cluster
from twolane.router.generation import Generation, GenerationRequest, Sink
from twolane.router.metrics import RouterMetrics
from twolane.router.placing import Placer
from twolane.router.sampling import seed_of_choice
from twolane.router.submission import Submission, Submitter
from twolane.router.tokenizer import Tokenizer

RETRY_OVERLOADED_S = 1.0
# Workers that an answer is sent to before its first token, one after the other.
MAX_ATTEMPTS = 3


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
        self._submitter = Submitter(cluster, placer)
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
        submissions: list[Submission] = []
        try:
            for number, prompt in enumerate(request.prompts):
                for choice in range(request.n):
                    sampling = request.sampling[number]
                    sampling = replace(sampling, seed=seed_of_choice(sampling.seed, choice))
                    answer = self._answer(generation, AnswerTask(prompt, sampling, hashes[number]))
                    submissions += self._submitter.prepare(answer, request.timeout_s)
        except Unavailable:
            for submission in submissions:
                submission.leg.close()
            raise
        for submission in submissions:
            submission.send()
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

    def retry(self, generation: Generation, answer: Answer) -> bool:
        """See generation.Observer."""
        if self.draining or len(answer.avoid) >= MAX_ATTEMPTS:
            return False
        left_s = self._timers[generation].when() - asyncio.get_running_loop().time()
        try:
            submissions = self._submitter.prepare(answer, left_s)
        except Unavailable:
            return False
        self._metrics.retried()
        for submission in submissions:
            submission.send()
        return True

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

    def _answer(self, generation: Generation, task: AnswerTask) -> Answer:
        request = generation.request
        context = task.prompt if request.continues_prompt else ()
        text = AnswerText(self._tokenizer.fast, request.stop, task.sampling.min_tokens, context)
        answer = Answer(generation, task, text, self._metrics)
        generation.add(answer)
        return answer
