"""A worker that speaks the Worker contract and answers from a script, without a model.

Its tokens are known beforehand, so that tests of the router can say what a client must see. It steps
by itself, one token per request and step, unless a test holds it and steps it by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry

from twolane.core.model import ModelFingerprint
from twolane.rpc.convert import fingerprint_to_proto
from twolane.rpc.server import RpcServer
from twolane.v1 import broker_pb2, types_pb2, worker_pb2, worker_pb2_grpc

Script = Callable[[worker_pb2.Submit], list[int]]


@dataclass
class ScriptedRequest:
    """A request as the worker knows it."""

    submit: worker_pb2.Submit
    out: asyncio.Queue[worker_pb2.WorkerMessage | None]
    tokens: list[int]
    sent: int = 0
    may_run: bool = True
    ends_with: int = types_pb2.FINISH_REASON_STOP

    @property
    def key(self) -> str:
        """Its id over all workers."""
        return self.submit.request_id


@dataclass
class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    """One worker.

    Attributes:
        held: it steps only when `step` is called.
        steps_per_message: tokens of one request in one message.
        most_tokens: length of answers in place of what was asked for.
        peers: workers by id, for the handover.
        requests: those that run, by id.
        submits: everything ever submitted, in order.
        cancels: ids that were cancelled.
        refuse_with: an error for every new request.
        refuse_peers: the same by the id of the peer that a request names.
        keep_handover: a prefill worker keeps the request after its first token.
    """

    worker_id: str
    role: types_pb2.Role.ValueType
    fingerprint: ModelFingerprint
    script: Script
    incarnation: int = 1
    held: bool = False
    steps_per_message: int = 1
    most_tokens: int | None = None
    peers: dict[str, ScriptedWorker] = field(default_factory=dict)
    requests: dict[str, ScriptedRequest] = field(default_factory=dict)
    submits: list[worker_pb2.Submit] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    refuse_with: types_pb2.Error | None = None
    refuse_peers: dict[str, types_pb2.Error] = field(default_factory=dict)
    keep_handover: bool = False
    hellos: list[worker_pb2.Hello] = field(default_factory=list)
    load: worker_pb2.Load = field(default_factory=lambda: worker_pb2.Load(total_pages=1000, free_pages=1000))

    def __post_init__(self) -> None:
        self._server = RpcServer("worker", "127.0.0.1", 0, registry=CollectorRegistry())
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server.aio)
        self._outs: list[asyncio.Queue[worker_pb2.WorkerMessage | None]] = []
        self._work = asyncio.Event()
        self._handed_over: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens and steps."""
        await self._server.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Breaks every stream at once, as a killed process does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._server.stop(0)

    def info(self) -> broker_pb2.WorkerInfo:
        """What the broker says of it."""
        return broker_pb2.WorkerInfo(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            address=f"127.0.0.1:{self._server.port}",
            role=self.role,
            fingerprint=fingerprint_to_proto(self.fingerprint),
            load=self.load,
        )

    async def Session(
        self,
        request_iterator: AsyncIterator[worker_pb2.RouterMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[worker_pb2.WorkerMessage]:
        """The multiplexed stream."""
        del context
        out: asyncio.Queue[worker_pb2.WorkerMessage | None] = asyncio.Queue()
        self._outs.append(out)
        reader = asyncio.create_task(self._read(request_iterator, out))
        try:
            while (message := await out.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._outs.remove(out)
            self.requests = {key: r for key, r in self.requests.items() if r.out is not out}

    def report(self, load: worker_pb2.Load) -> None:
        """Tells every router how busy it is."""
        for out in self._outs:
            out.put_nowait(worker_pb2.WorkerMessage(load=load))

    async def _read(
        self,
        messages: AsyncIterator[worker_pb2.RouterMessage],
        out: asyncio.Queue[worker_pb2.WorkerMessage | None],
    ) -> None:
        streams: dict[int, ScriptedRequest] = {}
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "hello":
                self.hellos.append(message.hello)
                welcome = worker_pb2.Welcome(
                    worker_id=self.worker_id,
                    incarnation=self.incarnation,
                    fingerprint=fingerprint_to_proto(self.fingerprint),
                )
                out.put_nowait(worker_pb2.WorkerMessage(welcome=welcome))
            elif kind == "submit":
                streams[message.submit.stream_id] = self._accept(message.submit, out)
            elif message.cancel.stream_id in streams:
                key = streams[message.cancel.stream_id].key
                self.cancels.append(key)
                self.requests.pop(key, None)
        out.put_nowait(None)

    def _accept(
        self, submit: worker_pb2.Submit, out: asyncio.Queue[worker_pb2.WorkerMessage | None]
    ) -> ScriptedRequest:
        self.submits.append(submit)
        tokens = self.script(submit)
        most = self.most_tokens or submit.sampling.max_tokens
        request = ScriptedRequest(submit, out, tokens[:most], sent=submit.generated_tokens)
        if len(tokens) > most:
            request.ends_with = types_pb2.FINISH_REASON_LENGTH
        if submit.phase == worker_pb2.PHASE_DECODE:
            request.may_run = request.key in self._handed_over
            request.sent += 1
        refusal = self.refuse_peers.get(submit.peer.worker_id, self.refuse_with)
        if refusal is not None:
            event = worker_pb2.RequestEvent(
                stream_id=submit.stream_id, finish_reason=types_pb2.FINISH_REASON_ERROR, error=refusal
            )
            self.send(out, [event])
            return request
        self.requests[request.key] = request
        self._work.set()
        return request

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            if self.held or not any(r.may_run for r in self.requests.values()):
                self._work.clear()
                continue
            self.step()
            await asyncio.sleep(0)

    def step(self) -> None:
        """One engine step: every request that may run gets its next tokens, one message a session."""
        events: dict[int, list[worker_pb2.RequestEvent]] = {}
        outs = {id(r.out): r.out for r in self.requests.values()}
        for request in list(self.requests.values()):
            if request.may_run:
                events.setdefault(id(request.out), []).append(self._advance(request))
        for key, listed in events.items():
            self.send(outs[key], listed)

    def release(self) -> None:
        """Steps by itself again."""
        self.held = False
        self._work.set()

    def hand_over(self, key: str) -> None:
        """The prompt's pages are here: the request joins the batch."""
        if key not in self.requests:
            # The router's submission to this worker may come later than the peer's pages.
            self._handed_over.add(key)
            return
        self.requests[key].may_run = True
        self._work.set()

    def _advance(self, request: ScriptedRequest) -> worker_pb2.RequestEvent:
        submit = request.submit
        event = worker_pb2.RequestEvent(stream_id=submit.stream_id)
        if request.sent == submit.generated_tokens:
            event.cached_tokens = min(4, len(submit.prompt_tokens) - 1)
        count = 1 if submit.phase == worker_pb2.PHASE_PREFILL else self.steps_per_message
        new = request.tokens[request.sent : request.sent + count]
        request.sent += len(new)
        event.token_ids.extend(new)
        if submit.sampling.HasField("top_logprobs"):
            event.logprobs.extend(_logprob(token, submit.sampling.top_logprobs) for token in new)
        done = request.sent >= len(request.tokens)
        if done:
            event.finish_reason = request.ends_with  # type: ignore[assignment]
        elif self.keep_handover:
            request.may_run = False
            return event
        if done or submit.phase == worker_pb2.PHASE_PREFILL:
            self.requests.pop(request.key, None)
            if submit.phase == worker_pb2.PHASE_PREFILL:
                self._hand_over_to_peer(request, event, done)
        return event

    def _hand_over_to_peer(
        self, request: ScriptedRequest, event: worker_pb2.RequestEvent, done: bool
    ) -> None:
        # The peer of an answer that is done hears of it from the router.
        if not done:
            event.handed_over = True
            self.peers[request.submit.peer.worker_id].hand_over(request.key)

    def send(
        self, out: asyncio.Queue[worker_pb2.WorkerMessage | None], events: list[worker_pb2.RequestEvent]
    ) -> None:
        """One message with these events."""
        out.put_nowait(worker_pb2.WorkerMessage(step=worker_pb2.StepEvents(events=events)))


def _logprob(token: int, count: int) -> types_pb2.TokenLogprob:
    top = [types_pb2.TokenLogprob(token_id=token + i, logprob=-0.5 - i) for i in range(count)]
    return types_pb2.TokenLogprob(token_id=token, logprob=-0.5, top=top)
