"""One request as a worker sees it, and the events its router gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import Enum

from opentelemetry.trace import Span

from twolane.core.errors import TwolaneError
from twolane.core.request import FinishReason, Phase
from twolane.engine.sequence import Sampled, Sequence
from twolane.prefill.queue import Prompt
from twolane.rpc.convert import error_to_proto, logprob_to_proto
from twolane.rpc.words import finish_reason_to_proto
from twolane.telemetry.logs import request_id_var
from twolane.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


class State(Enum):
    """Where a request is in this worker."""

    QUEUED = "queued"
    HANDING_OVER = "handing_over"
    RESERVING = "reserving"
    RECEIVING = "receiving"
    RUNNING = "running"


class Outbox:
    """Events for one router, gathered during a step and sent as one message."""

    def __init__(self, send: Callable[[pb.WorkerMessage], None]) -> None:
        self._send = send
        self._events: list[pb.RequestEvent] = []

    def add(self, event: pb.RequestEvent) -> None:
        """Gathers an event."""
        self._events.append(event)

    def flush(self) -> None:
        """Sends what was gathered, if anything."""
        if self._events:
            self._send(pb.WorkerMessage(step=pb.StepEvents(events=self._events)))
            self._events = []

    def refuse(self, stream_id: int, error: TwolaneError) -> None:
        """Reports at once that a request can't be taken."""
        event = pb.RequestEvent(stream_id=stream_id, error=error_to_proto(error))
        event.finish_reason = finish_reason_to_proto(FinishReason.ERROR)
        self.add(event)
        self.flush()

    def send_load(self, load: pb.Load) -> None:
        """Sends a load report."""
        self._send(pb.WorkerMessage(load=load))


@dataclass(eq=False)
class Request:
    """A request, or one worker's half of it.

    Attributes:
        outbox: of the router it came from.
        stream_id: its number on that router's stream.
        phase: this worker's part.
        sequence: tokens, pages and sampling.
        peer: the worker with the other half, if any.
        state: where it is.
        cached_tokens: reported with the first token.
        reported: whether a first event went out.
        timer: ends it at its deadline.
        span: of the part being done now.
        arrival_s: when it came, on the worker's clock.
        due_s: when its first token is due, or None.
        priority: higher goes first among equals.
    """

    outbox: Outbox
    stream_id: int
    phase: Phase
    sequence: Sequence
    peer: pb.Peer
    state: State
    arrival_s: float
    due_s: float | None = None
    priority: int = 0
    cached_tokens: int = 0
    reported: bool = False
    timer: asyncio.TimerHandle | None = None
    span: Span | None = field(default=None, repr=False)

    @property
    def request_id(self) -> str:
        """Its id over all processes."""
        return self.sequence.request_id

    def prompt(self) -> Prompt:
        """What waits in the prefill queue for it, at first and after a preemption."""
        return Prompt(self.sequence, self.arrival_s, self.due_s, self.priority)

    def emit_token(self, sampled: Sampled) -> None:
        """Reports a token."""
        logprobs = [logprob_to_proto(sampled.logprob)] if sampled.logprob is not None else ()
        self._emit([sampled.token_id], logprobs=logprobs)

    def emit_finish(self, reason: FinishReason) -> None:
        """Reports the end of the answer."""
        self._emit((), reason)

    def emit_error(self, error: TwolaneError) -> None:
        """Reports the request's failure."""
        self.outbox.refuse(self.stream_id, error)

    def emit_handed_over(self) -> None:
        """Reports that the pages have landed at the peer."""
        self.outbox.add(pb.RequestEvent(stream_id=self.stream_id, handed_over=True))

    def log_end(self, seconds: float, outcome: str, error: TwolaneError | None) -> None:
        """Notes in the log how it ended, so many seconds after it came."""
        request_id_var.set(self.request_id)
        facts = {
            "phase": self.phase.value,
            "outcome": outcome,
            "prompt_tokens": self.sequence.n_prompt,
            "generated_tokens": self.sequence.n_generated,
            "seconds": round(seconds, 4),
        }
        if error is None:
            log.info("request ended", extra=facts)
        else:
            log.warning("request failed: %s", error.message, extra=facts)

    def _emit(
        self, token_ids: Tokens[int], reason: FinishReason | None = None, logprobs: Tokens[object] = ()
    ) -> None:
        cached = 0 if self.reported else self.cached_tokens
        self.reported = True
        self.outbox.add(
            pb.RequestEvent(
                stream_id=self.stream_id,
                token_ids=token_ids,
                logprobs=logprobs,  # type: ignore[arg-type]
                finish_reason=finish_reason_to_proto(reason),
                cached_tokens=cached,
            )
        )
