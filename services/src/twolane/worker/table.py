"""Every request this worker has, and the one place where each changes its state.

Routers submit and cancel through their sessions, the step loop reports tokens, the transfer reports
landings. All of it runs on the event loop's thread; only the engine step itself runs elsewhere, and
pages that it touches are given back after it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twolane.core.clock import Clock
from twolane.core.errors import (
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidRequest,
    LeaseInvalid,
    Overloaded,
    TwolaneError,
)
from twolane.core.request import FinishReason, Phase
from twolane.decode.batch import DecodeBatch, give_back
from twolane.decode.intake import Arriving, Intake
from twolane.engine.pages import PagePool
from twolane.engine.sequence import Sampled, Sequence
from twolane.prefill.queue import PrefillQueue, Prompt
from twolane.rpc.convert import sampling_from_proto
from twolane.rpc.words import phase_from_proto
from twolane.telemetry.logs import request_id_var
from twolane.transfer.sender import Sender
from twolane.v1 import transfer_pb2
from twolane.v1 import worker_pb2 as pb
from twolane.worker.admission import Limits
from twolane.worker.leases import Leases
from twolane.worker.metrics import WorkerMetrics
from twolane.worker.request import Outbox, Request, State
from twolane.worker.spans import Spans
from twolane.worker.wants import Wants


@dataclass(frozen=True)
class Parts:
    """The parts of a worker that hold requests.

    Attributes:
        pool: the pages.
        prefill: prompts that wait.
        decode: answers that grow.
        intake: prompts that arrive from elsewhere.
    """

    pool: PagePool
    prefill: PrefillQueue
    decode: DecodeBatch
    intake: Intake


class RequestTable:
    """Requests by id.

    Args:
        parts: where requests wait and run.
        limits: what is refused at once.
        now: clock of arrivals and deadlines.
        wake: tells the step loop that there may be work.
        metrics: counts outcomes.

    Attributes:
        sender: transfers that leave; set by the process before the first request.
        leases: leases on our pages; likewise.
        wants: tells decode workers which prompts begin here; likewise.
        transferred: told of each answer that ended well after a transfer to us; likewise.
        draining: nothing new is taken.
        empty: set while there is no request.
    """

    sender: Sender
    leases: Leases
    wants: Wants
    transferred: Callable[[Sequence], None]

    def __init__(
        self, parts: Parts, limits: Limits, now: Clock, wake: Callable[[], None], metrics: WorkerMetrics
    ) -> None:
        self._parts = parts
        self._limits = limits
        self._now = now
        self._wake = wake
        self._metrics = metrics
        self._requests: dict[str, Request] = {}
        self._by_stream: dict[tuple[Outbox, int], Request] = {}
        self._outboxes: set[Outbox] = set()
        self._in_step: frozenset[str] = frozenset()
        self._after_step: list[Sequence] = []
        self._arrangements: set[asyncio.Task[None]] = set()
        self._spans = Spans()
        self.draining = False
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._requests)

    def states(self) -> dict[str, str]:
        """State of every request, by id."""
        return {key: request.state.value for key, request in self._requests.items()}

    def pages(self) -> int:
        """Distinct pages that requests hold, those included that ended in the step under way."""
        holders = [*(request.sequence for request in self._requests.values()), *self._after_step]
        return len({page_id for sequence in holders for page_id in sequence.page_ids})

    # From routers.

    def open_session(self, outbox: Outbox) -> None:
        """A router's stream begins."""
        self._outboxes.add(outbox)

    def submit(self, outbox: Outbox, submit: pb.Submit) -> None:
        """Takes a request, or reports at once why not."""
        request_id_var.set(submit.request_id)
        request = self._new_request(outbox, submit)
        try:
            self._check(request)
            self._requests[request.request_id] = request
            self._by_stream[outbox, submit.stream_id] = request
            self.empty.clear()
            self._spans.begin(request, submit.traceparent)
            delay_s = submit.timeout_ms / 1000
            # First: a transfer that can't be may end the request at once, and its timer with it.
            request.timer = asyncio.get_running_loop().call_later(delay_s, self._expire, request)
            self._place(request)
        except TwolaneError as error:
            self._refuse(request, error)
        self._wake()

    def cancel(self, request: Request) -> None:
        """Ends a request because its router said so; nothing more is reported."""
        self._end(request, "cancelled")

    def find(self, outbox: Outbox, stream_id: int) -> Request | None:
        """A request by its number on a router's stream."""
        return self._by_stream.get((outbox, stream_id))

    def end_session(self, outbox: Outbox) -> None:
        """Cancels everything that came by a stream that has closed."""
        self._outboxes.discard(outbox)
        for request in [each for each in self._requests.values() if each.outbox is outbox]:
            self.cancel(request)

    # From the step loop.

    def step_begins(self, request_ids: frozenset[str]) -> None:
        """The engine is about to use these requests' pages."""
        self._in_step = request_ids

    def step_ends(self) -> None:
        """The engine has let go of all pages; those of requests that ended meanwhile are given back."""
        self._in_step = frozenset()
        for sequence in self._after_step:
            give_back(self._parts.pool, sequence)
        self._after_step.clear()
        for outbox in self._outboxes:
            outbox.flush()

    def prompts_begun(self, prompts: Iterable[Prompt]) -> None:
        """Their first chunks are about to be computed: their decode workers will have to take them."""
        for prompt in prompts:
            request = self._requests.get(prompt.sequence.request_id)
            if request is not None and request.phase is Phase.PREFILL:
                self.wants.announce(request.peer, request.request_id)

    def prompt_advanced(self, prompt: Prompt) -> None:
        """A chunk is computed: its full pages may travel."""
        request = self._requests.get(prompt.sequence.request_id)
        if request is not None and request.phase is Phase.PREFILL:
            self.sender.advance(request.request_id, prompt.sequence.page_ids, prompt.sequence.n_computed)

    def prompt_complete(self, prompt: Prompt, sampled: Sampled) -> None:
        """A prompt (or a preempted answer) is computed and its next token drawn."""
        request = self._requests.get(prompt.sequence.request_id)
        if request is None:
            return
        if not request.reported:
            request.cached_tokens = prompt.cached_tokens
            waited_s = self._now() - request.arrival_s
            self._metrics.queue_seconds.labels(prompt.lane.value).observe(waited_s)
        if self.token(request.sequence, sampled):
            return
        if request.phase is Phase.PREFILL:
            request.state = State.HANDING_OVER
            self._spans.move(request, "transfer")
            sequence, computed = request.sequence, request.sequence.n_computed
            self.sender.advance(request.request_id, sequence.page_ids, computed)
            self.sender.complete(request.request_id, computed, sequence.tokens[computed:])
        else:
            self._run(request)

    def token(self, sequence: Sequence, sampled: Sampled) -> bool:
        """Reports a drawn token; returns whether the answer ends with it."""
        request = self._requests.get(sequence.request_id)
        if request is None:
            return True
        sampling = sequence.sampling
        if sampled.token_id in sampling.stop_token_ids and not sampling.ignore_eos:
            request.emit_finish(FinishReason.STOP)
        else:
            sequence.tokens.append(sampled.token_id)
            request.emit_token(sampled)
            full = len(sequence.tokens) >= self._limits.max_model_len
            if not full and sequence.n_generated < sampling.max_tokens:
                return False
            request.emit_finish(FinishReason.LENGTH)
        self._end(request, "finished")
        return True

    def preempted(self, sequence: Sequence) -> None:
        """An answer lost its pages: it queues to be computed again, ahead of the others."""
        self._metrics.preemptions.inc()
        request = self._requests[sequence.request_id]
        request.state = State.QUEUED
        self._parts.prefill.add(request.prompt(), front=True)

    def step_failed(self, request_ids: frozenset[str]) -> None:
        """The engine raised: the requests of the step end with an error, the others go on."""
        # Nobody knows what the step has written: none of it may become a reusable prefix.
        for sequence in self._after_step:
            sequence.n_computed = 0
        for request in [each for key, each in self._requests.items() if key in request_ids]:
            request.sequence.n_computed = 0
            self.fail(request, Internal("the engine failed on this request; the worker's log has the trace"))

    def frees_itself(self, request_id: str) -> bool:
        """Whether a prompt's pages can't get stuck here once it is computed: it stays, or its peer has room.

        While too many pages wait for their transfer only these are computed. To hold them back, too, could
        be for ever: the peer's room may be what the others wait for.
        """
        return self._requests[request_id].phase is not Phase.PREFILL or self.sender.has_offer(request_id)

    def reserve_pages(self) -> None:
        """Gives free pages to requests that wait for them and starts arranging their leases."""
        if self._parts.prefill.owes:
            return
        for arriving in self._parts.intake.reserve(self._now(), self._parts.decode.members()):
            request = self._requests[arriving.sequence.request_id]
            request.state = State.RECEIVING
            task = asyncio.create_task(self._arrange(request, arriving), name=f"lease-{request.request_id}")
            self._arrangements.add(task)
            task.add_done_callback(self._arrangements.discard)

    # From transfers.

    def wanted(self, wanted: transfer_pb2.PagesWanted) -> None:
        """A peer has begun to compute prompts for us: their pages come next."""
        for request_id in wanted.request_ids:
            self._parts.intake.begin(self._now(), wanted.writer_id, request_id)
        self.reserve_pages()
        self._wake()

    def offered(self, offer: transfer_pb2.PageOffer) -> None:
        """A peer has room for the pages of a prompt: it may be held back no longer."""
        self.sender.offer(offer)
        self._wake()

    def landed(self, request_id: str) -> None:
        """Our pages have landed at the peer: this worker's part is over."""
        if (request := self._requests.get(request_id)) is not None:
            request.emit_handed_over()
            request.outbox.flush()
            self._end(request, "handed_over")

    def handed_over(self, request_id: str, generated: list[int]) -> None:
        """A prompt has landed here: its answer joins the batch."""
        request = self._requests.get(request_id)
        arriving = self._parts.intake.remove(request_id)
        if request is None or arriving is None:
            return
        self.leases.release(arriving.lease_id)
        sequence = request.sequence
        sequence.n_computed = len(sequence.tokens)
        sequence.tokens.extend(generated)
        self._run(request)
        self._wake()

    def transfer_failed(self, request_id: str, error: TwolaneError) -> None:
        """A transfer of ours, or one to us, has ended with an error."""
        if (request := self._requests.get(request_id)) is not None:
            self.fail(request, error)

    def lease_expired(self, request_id: str) -> None:
        """The broker no longer knows a lease of ours."""
        self.transfer_failed(request_id, LeaseInvalid("the lease on the decode worker's pages expired"))

    def fail(self, request: Request, error: TwolaneError) -> None:
        """Ends a request and tells its router why."""
        request.emit_error(error)
        self._end(request, error.code, error)
        request.outbox.flush()

    # Inner workings.

    def _new_request(self, outbox: Outbox, submit: pb.Submit) -> Request:
        prompt = array("I", submit.prompt_tokens)
        sequence = Sequence(
            submit.request_id,
            prompt,
            len(prompt) - submit.generated_tokens,
            sampling_from_proto(submit.sampling),
            cache_salt=submit.cache_salt,
        )
        phase = phase_from_proto(submit.phase)
        state = State.RESERVING if phase is Phase.DECODE else State.QUEUED
        request = Request(outbox, submit.stream_id, phase, sequence, submit.peer, state, self._now())
        request.due_s = request.arrival_s + submit.ttft_slo_ms / 1000 if submit.ttft_slo_ms else None
        request.priority = submit.priority
        return request

    def _check(self, request: Request) -> None:
        if self.draining:
            raise Draining("this worker is about to stop; send the request to another one", retry_after_s=1)
        if request.request_id in self._requests:
            raise InvalidRequest(f"request id {request.request_id} is in use", param="request_id")
        self._limits.check(request)
        if len(self._parts.prefill) + self._parts.intake.waiting >= self._limits.max_waiting:
            raise Overloaded(f"{self._limits.max_waiting} requests wait here already", retry_after_s=1)

    def _place(self, request: Request) -> None:
        if request.phase is Phase.DECODE:
            self._parts.intake.add(Arriving(request.sequence, request.peer.worker_id))
            self.reserve_pages()
            return
        self._parts.prefill.add(request.prompt())
        if request.phase is Phase.PREFILL:
            self.sender.open(request.request_id)

    async def _arrange(self, request: Request, arriving: Arriving) -> None:
        request_id_var.set(request.request_id)
        try:
            with self._spans.current(request):
                await self.leases.arrange(arriving, request.peer)
        except TwolaneError as error:
            if self._requests.get(request.request_id) is request:
                self.fail(request, error)
        finally:
            # Cancelled or finished while the broker was asked: nobody else knows the lease.
            if self._parts.intake.get(request.request_id) is not arriving:
                self.leases.release(arriving.lease_id)

    def _run(self, request: Request) -> None:
        request.state = State.RUNNING
        self._spans.move(request, "decode")
        self._parts.decode.join(request.sequence)

    def _refuse(self, request: Request, error: TwolaneError) -> None:
        if self._requests.get(request.request_id) is request:
            self.fail(request, error)
            return
        self._metrics.ended.labels(error.code).inc()
        request.emit_error(error)
        request.outbox.flush()

    def _expire(self, request: Request) -> None:
        state = request.state.value
        self.fail(request, DeadlineExceeded(f"the request's deadline passed while it was {state}"))

    def _end(self, request: Request, outcome: str, error: TwolaneError | None = None) -> None:
        if self._requests.get(request.request_id) is not request:
            return
        del self._requests[request.request_id]
        self._by_stream.pop((request.outbox, request.stream_id), None)
        if not self._requests:
            self.empty.set()
        if request.timer is not None:
            request.timer.cancel()
        request.log_end(self._now() - request.arrival_s, outcome, error)
        self._spans.end(request, outcome)
        self._parts.intake.admission.forget(request.request_id)
        if outcome == "finished" and request.phase is not Phase.PREFILL:
            self._parts.intake.admission.finished(request.sequence)
        if outcome == "finished" and request.phase is Phase.DECODE:
            self.transferred(request.sequence)
        self._metrics.ended.labels(outcome).inc()
        self._parts.prefill.remove(request.request_id)
        self._parts.decode.remove(request.request_id)
        if (arriving := self._parts.intake.remove(request.request_id)) is not None:
            self.leases.release(arriving.lease_id)
        if request.phase is Phase.PREFILL:
            # Finished or cancelled: the router tells the peer itself.
            self.sender.end(request.request_id, error)
        if request.request_id in self._in_step:
            self._after_step.append(request.sequence)
        else:
            give_back(self._parts.pool, request.sequence)
        self._wake()
