"""One client request while it is served: its answers, its one ending.

`dispatch.py` makes a Generation; REST and gRPC give it a Sink that turns pieces into bytes or messages.
Everything here happens on the event loop, in the callbacks of worker streams and timers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twolane.core.errors import TwolaneError
from twolane.core.request import FinishReason, Lane, SamplingParams, Usage

if TYPE_CHECKING:
    from twolane.router.answer import Answer


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A validated request.

    Attributes:
        request_id: unique over all processes; answers append their number.
        prompts: token ids; several prompts are answered as if asked one by one.
        sampling: parameters per prompt, the first choice's seed in them.
        stop: strings that end an answer.
        n: choices per prompt.
        continues_prompt: the text goes on where the prompt ends (a completion, not a chat).
        return_token_ids: keep the ids of new tokens for the sink.
        cache_salt: keeps this tenant's prefixes apart.
        priority: higher goes first among equals.
        ttft_slo_ms: the request's own target for the first token, 0 for none; None: its lane's.
        timeout_s: seconds left for the whole request.
        arrival_s: when it came, on the event loop's clock.
        traceparent: W3C trace context of the router's span.
    """

    request_id: str
    prompts: tuple[list[int], ...]
    sampling: tuple[SamplingParams, ...]
    stop: tuple[str, ...] = ()
    n: int = 1
    continues_prompt: bool = False
    return_token_ids: bool = False
    cache_salt: str = ""
    priority: int = 0
    ttft_slo_ms: int | None = None
    timeout_s: float = 600.0
    arrival_s: float = 0.0
    traceparent: str = ""


class Sink(Protocol):
    """Takes what a request brings; must not block."""

    def on_piece(self, answer: Answer, text: str, finish: FinishReason | None) -> None:
        """New text of one answer; `finish` on its last piece. Ids and log probabilities: ask the answer."""
        ...

    def on_end(self, error: TwolaneError | None) -> None:
        """The last call: every answer has ended, or the request failed."""
        ...


class Observer(Protocol):
    """Who started the request and keeps the books."""

    def answer_began(self, generation: Generation, answer: Answer) -> None:
        """An answer's first token, or its end without one, came."""
        ...

    def retry(self, generation: Generation, answer: Answer, error: TwolaneError) -> bool:
        """Sends an answer whose workers gave up to others, or holds it."""
        ...

    def generation_over(self, generation: Generation) -> None:
        """Nothing of the request runs any more."""
        ...


class Generation:
    """A running request.

    Attributes:
        request: what was asked.
        answers: one per prompt and choice, in the order of their index.
        ended: whether on_end was called.
        error: why it failed, or None.
    """

    def __init__(self, request: GenerationRequest, sink: Sink, observer: Observer) -> None:
        self.request = request
        self.answers: list[Answer] = []
        self.ended = False
        self.error: TwolaneError | None = None
        self._sink = sink
        self._observer = observer
        self._remaining = 0

    def add(self, answer: Answer) -> None:
        """Adds an answer before anything of the request runs."""
        self.answers.append(answer)
        self._remaining += 1

    @property
    def lane(self) -> Lane:
        """Lane of the first answer: the label of the request's metrics."""
        return self.answers[0].lane if self.answers else Lane.SHORT

    def piece(self, answer: Answer, text: str, finish: FinishReason | None) -> None:
        """Called by an answer with new text."""
        self._sink.on_piece(answer, text, finish)
        if finish is not None:
            self._remaining -= 1
            if self._remaining == 0 and not self.ended:
                self._end(None)

    def began(self, answer: Answer) -> None:
        """Called by an answer with its first event."""
        self._observer.answer_began(self, answer)

    def retry(self, answer: Answer, error: TwolaneError) -> bool:
        """Called by an answer whose workers gave up; False: nobody else can take it."""
        return not self.ended and self._observer.retry(self, answer, error)

    def fail(self, error: TwolaneError) -> None:
        """Ends the request: every worker that still works for it is told to stop."""
        if self.ended:
            return
        for answer in self.answers:
            answer.abandon()
        self._end(error)

    def usage(self) -> Usage:
        """Token counts over all answers; a prompt counts once, however many choices it has."""
        n = self.request.n
        return Usage(
            prompt_tokens=sum(len(prompt) for prompt in self.request.prompts),
            completion_tokens=sum(answer.text.n_tokens for answer in self.answers),
            cached_tokens=sum(answer.cached_tokens for answer in self.answers[::n]),
        )

    def _end(self, error: TwolaneError | None) -> None:
        self.ended = True
        self.error = error
        self._observer.generation_over(self)
        self._sink.on_end(error)
