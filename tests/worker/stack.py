"""Real workers in the test's event loop, and a router's end of their sessions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from twolane.core.request import FinishReason, Phase, SamplingParams
from twolane.rpc.channel import open_channel
from twolane.rpc.convert import sampling_to_proto
from twolane.rpc.tls import Tls
from twolane.rpc.words import finish_reason_from_proto, phase_to_proto
from twolane.telemetry.metrics import new_registry
from twolane.transfer.page_store import PageStore
from twolane.v1 import worker_pb2 as pb
from twolane.v1.worker_pb2_grpc import WorkerStub
from twolane.worker.config import WorkerConfig
from twolane.worker.process import WorkerProcess, load_engine

DEADLINE_S = 20.0
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


class RunningWorker:
    """A worker that serves until `close`."""

    def __init__(self, folder: Path, broker: str, role: Any, **settings: Any) -> None:
        self.config = WorkerConfig(
            model_dir=folder,
            broker=broker,
            role=role,
            port=0,
            http_port=0,
            num_threads=1,
            drain_timeout_s=5.0,
            **{"page_tokens": 4, "kv_memory_mib": 1, "window_ms": 1.0, "max_model_len": 128} | settings,
        )
        store = PageStore()
        self.engine = load_engine(self.config, store)
        self.process = WorkerProcess(self.config, self.engine, store, new_registry())
        self.stop = asyncio.Event()
        self.ports: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """host:port of its gRPC server."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def peer(self) -> pb.Peer:
        """As the other half of a request names it."""
        identity = self.process.identity
        return pb.Peer(
            worker_id=identity.worker_id, incarnation=identity.incarnation, address=identity.address
        )

    async def start(self) -> None:
        """Listens."""
        self._task = asyncio.create_task(self.process.run(self.stop, self.ports.update))
        await until(lambda: bool(self.ports) or self._ended())

    async def registered(self) -> None:
        """Waits until the broker has taken it in."""
        await until(lambda: self.process.why_not_ready() is None or self._ended())

    async def close(self) -> None:
        """Drains and stops; raises what ended it otherwise."""
        self.stop.set()
        assert self._task is not None
        async with asyncio.timeout(DEADLINE_S):
            await self._task

    async def close_when_ended(self) -> None:
        """Raises what ended it by itself."""
        assert self._task is not None
        await self._task

    def _ended(self) -> bool:
        return self._task is not None and self._task.done()


class Answer:
    """What came back for one submitted half of a request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.events: list[pb.RequestEvent] = []
        self.cached_tokens = 0
        self.finish: FinishReason | None = None
        self.error = ""
        self.handed_over = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None or self.handed_over

    def add(self, event: pb.RequestEvent) -> None:
        """Takes an event."""
        self.events.append(event)
        self.tokens += event.token_ids
        self.cached_tokens += event.cached_tokens
        self.finish = finish_reason_from_proto(event.finish_reason) or self.finish
        self.error = event.error.code or self.error
        self.handed_over = event.handed_over or self.handed_over


class RouterEnd:
    """A router's session with one worker."""

    def __init__(self, worker: RunningWorker, tls: Tls | None = None) -> None:
        self._channel = open_channel(worker.address, tls)
        self.stub = WorkerStub(self._channel)
        self.call: Any = self.stub.Session()
        self.answers: dict[int, Answer] = {}
        self.loads: list[pb.Load] = []
        self._ids = itertools.count(1)
        self._tokenizer = worker.engine.fingerprint.tokenizer_sha256
        self._reader: asyncio.Task[None] | None = None

    async def open(self, tokenizer: str | None = None) -> pb.Welcome:
        """Says hello and begins to listen."""
        hello = pb.Hello(
            router_id="test", tokenizer_sha256=self._tokenizer if tokenizer is None else tokenizer
        )
        await self.call.write(pb.RouterMessage(hello=hello))
        first: pb.WorkerMessage = await self.call.read()
        self._reader = asyncio.create_task(self._read())
        return first.welcome

    async def submit(
        self, request_id: str, tokens: list[int], phase: Phase, sampling: SamplingParams, **fields: Any
    ) -> tuple[int, Answer]:
        """Sends a request; returns its number and the answer to come."""
        stream_id = next(self._ids)
        answer = self.answers[stream_id] = Answer()
        submit = pb.Submit(
            stream_id=stream_id,
            request_id=request_id,
            phase=phase_to_proto(phase),
            prompt_tokens=tokens,
            sampling=sampling_to_proto(sampling),
            **{"timeout_ms": 60_000} | fields,
        )
        await self.call.write(pb.RouterMessage(submit=submit))
        return stream_id, answer

    async def cancel(self, stream_id: int) -> None:
        """Ends a request."""
        await self.call.write(pb.RouterMessage(cancel=pb.Cancel(stream_id=stream_id)))

    async def inspect(self) -> pb.InspectResponse:
        """The worker's books."""
        return await self.stub.Inspect(pb.InspectRequest(), timeout=DEADLINE_S)

    async def close(self) -> None:
        """Goes away, as a router that dies does."""
        self.call.cancel()
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=DEADLINE_S)
        await self._channel.close()

    async def _read(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            for event in message.step.events:
                self.answers[event.stream_id].add(event)
            if message.HasField("load"):
                self.loads.append(message.load)


class Pair:
    """A prefill worker, a decode worker, and a router's session with each."""

    def __init__(
        self, prefill: RunningWorker, decode: RunningWorker, sessions: tuple[RouterEnd, RouterEnd]
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.to_prefill, self.to_decode = sessions

    async def ask(
        self, request_id: str, tokens: list[int], sampling: SamplingParams = GREEDY
    ) -> tuple[Answer, Answer]:
        """Submits both halves as a router does."""
        _, second = await self.to_decode.submit(
            request_id, tokens, Phase.DECODE, sampling, peer=self.prefill.peer
        )
        _, first = await self.to_prefill.submit(
            request_id, tokens, Phase.PREFILL, sampling, peer=self.decode.peer
        )
        return first, second

    def held(self) -> tuple[int, int]:
        """Pages that requests hold on both sides."""
        return self.prefill.engine.pool.held, self.decode.engine.pool.held


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Waits for a condition, at most `deadline_s`."""
    async with asyncio.timeout(deadline_s):
        # Conditions look into real workers, which know no event for each of them.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
