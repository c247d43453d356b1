"""One answer: the two workers' events in the order of its tokens, and every way it can end.

A prefill and a decode worker report on streams that are not ordered between each other: the decode
worker's tokens are held back until the first token has come. When workers give up, others go on from the
tokens that are there already. `sessions.py` calls in with events.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twolane.core.errors import Internal, TwolaneError, WorkerLost
from twolane.core.request import FinishReason, Lane, SamplingParams
from twolane.router.answer_text import AnswerText, PlacedLogprob
from twolane.router.generation import Generation, GenerationRequest
from twolane.router.leg import Leg
from twolane.router.metrics import RouterMetrics
from twolane.rpc.convert import error_from_proto
from twolane.v1 import types_pb2, worker_pb2

log = logging.getLogger(__name__)

_STOP = types_pb2.FINISH_REASON_STOP
_LENGTH = types_pb2.FINISH_REASON_LENGTH
_ERROR = types_pb2.FINISH_REASON_ERROR


@dataclass(frozen=True, slots=True)
class AnswerTask:
    """What has to be done for an answer.

    Attributes:
        prompt: token ids; those of the answer that others have drawn already are the last of them.
        sampling: how to draw.
        hashes: names of the prompt's pages.
        generated_tokens: tokens at the end of `prompt` that are the answer's.
    """

    prompt: list[int]
    sampling: SamplingParams
    hashes: Sequence[bytes]
    generated_tokens: int = 0


class Answer:
    """One answer to one prompt.

    Attributes:
        task: what has to be done.
        avoid: workers that gave up on it.
        attempts: how often workers gave up on it.
        index: its place among the request's answers.
        lane: the lane its prompt was sent to.
        uncached_tokens: prompt tokens to compute there.
        ttft_s: seconds from the request's arrival to the first token; 0 before it.
        text: its text so far.
        cached_tokens: prompt tokens that the prefill worker found in its cache.
        has_first: the first token, or an end without one, has come.
        ended: no more events count.
    """

    __slots__ = (
        "_decode",
        "_decoding",
        "_first_s",
        "_generation",
        "_held",
        "_ids",
        "_last_s",
        "_metrics",
        "_prefill",
        "_prompt_due",
        "_taken",
        "attempts",
        "avoid",
        "cached_tokens",
        "ended",
        "has_first",
        "index",
        "lane",
        "task",
        "text",
        "ttft_s",
        "uncached_tokens",
    )

    def __init__(
        self, generation: Generation, task: AnswerTask, text: AnswerText, metrics: RouterMetrics
    ) -> None:
        self.index = len(generation.answers)
        self.task = task
        self.avoid: frozenset[str] = frozenset()
        self.attempts = 0
        self.text = text
        self.lane = Lane.SHORT
        self.uncached_tokens = len(task.prompt)
        self.ttft_s = 0.0
        self.cached_tokens = 0
        self.has_first = False
        self.ended = False
        self._generation = generation
        self._metrics = metrics
        self._prefill: Leg | None = None
        self._decode: Leg | None = None
        # Of this attempt: the prompt's token has not come; the decode worker has said something.
        self._prompt_due, self._decoding = True, False
        self._held: list[worker_pb2.RequestEvent] = []
        self._ids: list[int] = []
        self._taken = 0
        self._first_s = self._last_s = 0.0

    @property
    def tpot_s(self) -> float:
        """Mean seconds of each token after the first; 0 without any."""
        later = self.text.n_tokens - 1
        return (self._last_s - self._first_s) / later if later > 0 else 0.0

    @property
    def request(self) -> GenerationRequest:
        """What was asked."""
        return self._generation.request

    def attach(self, lane: Lane, prefill: Leg, decode: Leg | None) -> None:
        """Names the workers' parts; `decode` is None when one worker does both."""
        self.lane = lane
        self._prefill, self._decode = prefill, decode
        self._prompt_due, self._decoding = True, False

    def on_first_events(self, event: worker_pb2.RequestEvent) -> None:
        """An event of the worker that computes the prompt (and, without a pair, of all tokens)."""
        if self.ended:
            return
        if event.cached_tokens and not self.has_first:
            self.cached_tokens = event.cached_tokens
        if event.token_ids or event.finish_reason:
            self._prompt_due = False
            self._advance(event, self._prefill)
        if event.handed_over and self._prefill is not None:
            self._prefill.close()
            self._prefill = None
        if self._held and not self._prompt_due:
            held, self._held = self._held, []
            for late in held:
                self.on_decode_events(late)

    def on_decode_events(self, event: worker_pb2.RequestEvent) -> None:
        """An event of the decode worker; tokens wait for the first token, failures don't."""
        if self.ended:
            return
        self._decoding = True
        if not self._prompt_due or event.finish_reason == _ERROR:
            self._advance(event, self._decode)
        else:
            self._held.append(event)

    def on_lost(self, leg: Leg, error: TwolaneError) -> None:
        """The stream to a worker broke. A prefill worker is no longer needed once decode has begun."""
        if self.ended:
            return
        begun = self._decode is not None and self._decoding and not self._prompt_due
        if leg is self._prefill and begun and isinstance(error, WorkerLost):
            self._prefill = None
            return
        self._give_up(leg, error)

    def abandon(self) -> None:
        """Tells both workers to stop; nothing more comes out of this answer."""
        if not self.ended:
            self._close(None)

    def take_token_ids(self) -> list[int]:
        """Token ids that are new since the last call."""
        taken, self._taken = self._ids[self._taken :], len(self._ids)
        return taken

    def take_logprobs(self) -> list[PlacedLogprob]:
        """Log probabilities that go with the text given out."""
        return self.text.take_logprobs(ended=self.ended)

    def _advance(self, event: worker_pb2.RequestEvent, leg: Leg | None) -> None:
        finish_number = event.finish_reason
        if finish_number and finish_number not in (_STOP, _LENGTH):
            self._give_up(leg, _failure(event))
            return
        ids = event.token_ids
        self._measure(len(ids))
        text = self.text
        before = text.n_tokens
        shown = text.feed(ids, event.logprobs)
        self._ids.extend(ids[: text.n_tokens - before])
        if text.stopped:
            self._close(None)
            self._generation.piece(self, shown, FinishReason.STOP)
        elif finish_number:
            shown += text.finish()
            # With the first token the answer can end at the prefill worker: the other one must hear of it.
            self._close(leg)
            # The text held back may complete a stop string just where the answer ends.
            reason = (
                FinishReason.LENGTH if finish_number == _LENGTH and not text.stopped else FinishReason.STOP
            )
            self._generation.piece(self, shown, reason)
        elif shown or (self.request.return_token_ids and self._taken < len(self._ids)):
            self._generation.piece(self, shown, None)

    def _give_up(self, leg: Leg | None, error: TwolaneError) -> None:
        """A worker failed: others may go on from the tokens that are there, or else the request fails.

        Token i of an answer depends on its seed and on i, so that they go on as this one would have.
        """
        if leg is not None and error.retryable:
            lost = self._at_fault(leg, error)
            self.avoid |= {lost}
            self.attempts += 1
            self._drop_legs()
            self._resume()
            if self._generation.retry(self, error):
                extra = {"request_id": self.request.request_id, "worker_id": lost}
                log.warning("answer sent to other workers: %s", error.message, extra=extra)
                return
        self._generation.fail(error)

    def _at_fault(self, leg: Leg, error: TwolaneError) -> str:
        """Who failed: the worker that says so, or the other one where it says that it can't reach that."""
        others = [each for each in (self._prefill, self._decode) if each is not None and each is not leg]
        return others[0].worker_id if error.param == "peer" and others else leg.worker_id

    def _resume(self) -> None:
        """Makes the tokens so far a part of what the next workers are given."""
        task = self.task
        prompt = task.prompt[: len(task.prompt) - task.generated_tokens]
        self.task = replace(task, prompt=[*prompt, *self._ids], generated_tokens=len(self._ids))

    def _measure(self, n_tokens: int) -> None:
        now = time.perf_counter()
        if not self.has_first:
            self.has_first = True
            self._first_s = now
            if self._prefill is not None:
                self._prefill.prompt_done()
            self._generation.began(self)
        elif n_tokens:
            self._metrics.next_tokens((now - self._last_s) / n_tokens, n_tokens)
        self._last_s = now

    def _close(self, finished: Leg | None) -> None:
        """Ends the answer: the worker that finished it knows, any other is told."""
        self.ended = True
        if finished is not None:
            finished.close()
        self._drop_legs()

    def _drop_legs(self) -> None:
        self._held.clear()
        for leg in (self._prefill, self._decode):
            if leg is not None:
                leg.cancel()
        self._prefill = self._decode = None


def _failure(event: worker_pb2.RequestEvent) -> TwolaneError:
    if event.finish_reason == _ERROR:
        return error_from_proto(event.error)
    return Internal("the worker cancelled the request without being asked to")
