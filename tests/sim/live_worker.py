"""The worker's own scheduler under virtual time: the real request table, queues and step loop, no engine.

An event loop whose clock jumps to what is due next runs the production code; the engine's place is taken by
one whose steps last as long as the simulator's cost model says.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from twolane.core.prefix import page_hashes
from twolane.core.request import Phase, SamplingParams
from twolane.decode.admission import Admission
from twolane.decode.batch import DecodeBatch
from twolane.decode.intake import Arriving, Intake
from twolane.engine.engine import Engine
from twolane.engine.pages import PagePool
from twolane.engine.sequence import Row, Sampled
from twolane.policies.decode import DecodePolicy
from twolane.policies.prefill import PrefillPolicy
from twolane.policies.settings import PrefillSettings
from twolane.prefill.queue import PrefillQueue
from twolane.rpc.convert import sampling_to_proto
from twolane.rpc.words import phase_to_proto
from twolane.sim.profile import EngineProfile
from twolane.telemetry.metrics import new_registry
from twolane.v1 import transfer_pb2
from twolane.v1 import worker_pb2 as pb
from twolane.worker.admission import Limits
from twolane.worker.cost_meter import CostMeter
from twolane.worker.metrics import WorkerMetrics
from twolane.worker.request import Outbox
from twolane.worker.step_loop import StepLoop
from twolane.worker.table import Parts, RequestTable

FOREVER_MS = 10_000_000


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting moves the clock to the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is due any more: the worker would wait for ever")
        if timeout > 0.0:
            self.loop.jump()
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs callbacks at their times, without waiting for them."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self._virtual_s

    def jump(self) -> None:
        """To the next timer."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if scheduled:
            self._virtual_s = max(self._virtual_s, scheduled[0].when())


class _StepExecutor(Executor):
    """Takes as long for a step as its rows cost, or without a cost as the processor took to compute it."""

    def __init__(self, loop: VirtualLoop, cost_s: Callable[[Sequence[Row]], float] | None) -> None:
        self._loop = loop
        self._cost_s = cost_s

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._cost_s is not None:
            seconds = self._cost_s(args[0])
            self._loop.call_later(seconds, lambda: future.set_result(fn(*args, **kwargs)))
            return future
        began_s = time.process_time()
        result = fn(*args, **kwargs)
        self._loop.call_later(time.process_time() - began_s, future.set_result, result)
        return future


class _Engine:
    """Draws the same token for ever."""

    ranks = None

    def step(self, rows: Sequence[Row], queue_depth: int = 0) -> list[Sampled | None]:
        del queue_depth
        for row in rows:
            row.sequence.n_computed += row.n_tokens
        return [Sampled(1) if row.sample else None for row in rows]


class Recorder:
    """A policy that notes its decisions."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.log: list[tuple[float, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def decide(self, now_s: float, view: Any) -> Any:
        """The policy's decision."""
        decision = self._policy.decide(now_s, view)
        self.log.append((now_s, decision))
        return decision


class _Transfers:
    """Stands for sender and leases: pages land `delay_s` after the prompt is complete, or was admitted."""

    def __init__(self, worker: LiveWorker, delay_s: float) -> None:
        self._worker = worker
        self._delay_s = delay_s
        self.pinned: dict[str, int] = {}

    def open(self, request_id: str) -> None:
        """A prompt to be sent."""

    def advance(self, request_id: str, page_ids: list[int], n_computed: int) -> None:
        """Pages to be sent."""

    def has_offer(self, request_id: str) -> bool:
        """Its peer has room at once."""
        return True

    def announce(self, peer: pb.Peer, request_id: str) -> None:
        """Its peer would be told that the prompt has begun."""

    def complete(self, request_id: str, n_tokens: int, generated: Sequence[int]) -> None:
        """All pages are computed."""
        self.pinned[request_id] = n_tokens
        self._worker.loop.call_later(self._delay_s, self._landed, request_id)

    def _landed(self, request_id: str) -> None:
        if self.pinned.pop(request_id, None) is not None:
            self._worker.table.landed(request_id)

    def end(self, request_id: str, error: Any) -> None:
        """It ended otherwise."""
        self.pinned.pop(request_id, None)

    async def arrange(self, arriving: Arriving, peer: pb.Peer) -> None:
        """Pages are reserved: the prompt comes."""
        name = arriving.sequence.request_id
        self._worker.loop.call_later(self._delay_s, self._worker.table.handed_over, name, [1])

    def release(self, lease_id: str) -> None:
        """Nothing was leased."""


@dataclass(frozen=True)
class Ask:
    """A request of a replay: `cached_tokens` of its prompt are in the worker's cache.

    Its prompt is begun elsewhere at `begun_s`; None: here, or never.
    """

    name: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    ttft_ms: int = 0
    abort_s: float | None = None
    draw: float = 0.5
    begun_s: float | None = None


class LiveWorker:
    """One worker's scheduler.

    Args:
        profile: how long steps take, and how many tokens the pool holds.
        prefill: policy of prompts.
        decode: policy of admissions.
        settings: of the prefill policy.
        max_rows: answers of a step at most.
        phase: the worker's part of every request.
        transfer_s: how long pages travel.
        page_tokens: tokens of a page.
        engine: a real one, whose steps take the processor's time; None: steps cost what the profile says.

    Attributes:
        tokens: times at which each request's tokens came.
    """

    def __init__(
        self,
        profile: EngineProfile,
        prefill: PrefillPolicy,
        decode: DecodePolicy,
        settings: PrefillSettings,
        max_rows: int = 256,
        phase: Phase = Phase.BOTH,
        transfer_s: float = 0.0,
        page_tokens: int = 16,
        engine: Engine | None = None,
    ) -> None:
        self.loop = VirtualLoop()
        self.ended: dict[str, float] = {}
        self.profile, self._phase = profile, phase
        self.prefill, self.decode = Recorder(prefill), Recorder(decode)
        self.tokens: dict[str, list[float]] = {}
        self._engine = engine
        self._pool = (
            PagePool(profile.capacity_tokens // page_tokens, page_tokens) if engine is None else engine.pool
        )
        self._admission = Admission(self.decode, self._pool, max_rows)
        queue = PrefillQueue(self.prefill, self._pool, settings)
        self._parts = Parts(
            self._pool, queue, DecodeBatch(self._pool, max_rows), Intake(self._pool, self._admission)
        )
        metrics = WorkerMetrics(new_registry())
        now = self.loop.time
        limits = Limits(vocab_size=2**31, max_model_len=2**31, max_waiting=10**9)
        self.table = RequestTable(self._parts, limits, now, self._wake, metrics)
        transfers: Any = _Transfers(self, transfer_s)
        self.table.sender = self.table.leases = self.table.wants = transfers
        self.table.transferred = lambda sequence: None
        self._steps = StepLoop(engine or _Engine(), self._parts, self.table, now, CostMeter(), metrics)  # type: ignore[arg-type]
        self._steps._thread = _StepExecutor(self.loop, None if engine else self._cost_s)  # type: ignore[assignment]
        self._steps.hold_back = lambda: sum(transfers.pinned.values()) > 0.5 * profile.capacity_tokens
        self._outbox = Outbox(self._sent)
        self.table.open_session(self._outbox)
        self._names: dict[int, str] = {}

    def _wake(self) -> None:
        self._steps.wake()

    def replay(self, asks: Sequence[Ask]) -> None:
        """Serves the requests to the last."""
        for number, ask in enumerate(asks):
            self._names[number] = ask.name
            self.loop.call_at(ask.arrival_s, self._submit, number, ask)
            if ask.begun_s is not None:
                wanted = transfer_pb2.PagesWanted(writer_id="peer", request_ids=[ask.name])
                self.loop.call_at(ask.begun_s, self.table.wanted, wanted)
            if ask.abort_s is not None:
                self.loop.call_at(ask.abort_s, self._abort, number)
        try:
            self.loop.run_until_complete(self._serve(len(asks)))
        finally:
            self.loop.close()

    async def _serve(self, count: int) -> None:
        steps = asyncio.create_task(self._steps.run())
        while len(self.ended) < count:
            # Between the events of the replay, whose times have other digits.
            await asyncio.sleep(0.5)
            assert not steps.done(), steps
        steps.cancel()
        await asyncio.gather(steps, return_exceptions=True)

    def _cost_s(self, rows: Sequence[Row]) -> float:
        answers = {id(sequence) for sequence in self._parts.decode.members()}
        held = [len(row.sequence.tokens) for row in rows if id(row.sequence) in answers]
        work = [(row.n_tokens, row.sequence.n_computed) for row in rows if id(row.sequence) not in answers]
        return self.profile.mixed_s(work, len(held), sum(held))

    def _submit(self, number: int, ask: Ask) -> None:
        # Every prompt has tokens of its own, or it would find another's pages.
        first = 1000 + number * 1_000_000
        tokens = array("I", range(first, first + ask.prompt_tokens))
        if self._engine is not None:
            tokens = array("I", [token * 7919 % self._engine.spec.vocab_size for token in tokens])
        hashes = page_hashes(tokens[: ask.cached_tokens], self._pool.page_tokens, "")
        pages = self._pool.allocate(len(hashes))
        for page_id, name in zip(pages, hashes, strict=True):
            self._pool.publish(page_id, name)
        self._pool.release(pages)
        self._admission._draws[ask.name] = ask.draw
        sampling = SamplingParams(max_tokens=ask.output_tokens, temperature=0.0, ignore_eos=True)
        submit = pb.Submit(
            stream_id=number,
            request_id=ask.name,
            phase=phase_to_proto(self._phase),
            prompt_tokens=tokens,
            sampling=sampling_to_proto(sampling),
            timeout_ms=FOREVER_MS,
            ttft_slo_ms=ask.ttft_ms,
            peer=pb.Peer(worker_id="peer", address="peer:1"),
        )
        self.table.submit(self._outbox, submit)

    def _abort(self, number: int) -> None:
        request = self.table.find(self._outbox, number)
        if request is not None:
            self.table.cancel(request)
            self.ended[self._names[number]] = self.loop.time()

    def _sent(self, message: pb.WorkerMessage) -> None:
        for event in message.step.events:
            assert not event.HasField("error"), event
            if event.token_ids:
                self.tokens.setdefault(self._names[event.stream_id], []).append(self.loop.time())
            if event.finish_reason or event.handed_over:
                self.ended[self._names[event.stream_id]] = self.loop.time()
