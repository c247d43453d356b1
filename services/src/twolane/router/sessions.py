"""The one stream to a worker: opens it, keeps it, sends submissions, delivers events.

`cluster.py` starts and stops one per worker of the broker's table. When a stream breaks every request
on it ends with worker_lost, and the session connects again with growing pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

import grpc
import grpc.aio

from twolane.core.errors import Incompatible, Internal, TwolaneError, WorkerLost
from twolane.core.model import ModelFingerprint
from twolane.router.leg import Leg
from twolane.router.worker_books import WorkerBooks
from twolane.rpc.channel import open_channel
from twolane.rpc.convert import fingerprint_from_proto
from twolane.rpc.errors import to_twolane_error
from twolane.rpc.tls import Tls
from twolane.v1 import broker_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

WELCOME_TIMEOUT_S = 10.0
# About half a millisecond of work. The loop sends one submission per turn: with a whole step of a
# thousand answers in a turn, new requests would wait for seconds.
EVENTS_PER_TURN = 32
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0

Call = grpc.aio.StreamStreamCall[worker_pb2.RouterMessage, worker_pb2.WorkerMessage]


class WorkerSession:
    """One worker and the stream to it.

    Attributes:
        info: what the broker says of the worker now.
        books: how busy it is.
        connected: the worker has welcomed this router.
    """

    def __init__(
        self,
        info: broker_pb2.WorkerInfo,
        hello: worker_pb2.Hello,
        check: Callable[[ModelFingerprint], None],
        on_change: Callable[[], None],
        tls: Tls | None = None,
    ) -> None:
        """`check` raises Incompatible for a worker that must not be used; `on_change`: up or down."""
        self._tls = tls
        self.info = info
        self.books = WorkerBooks()
        self.books.load.CopyFrom(info.load)
        self.connected = False
        self.problem = "connecting"
        self._hello = hello
        self._check = check
        self._on_change = on_change
        self._legs: dict[int, Leg] = {}
        self._outbox: deque[worker_pb2.RouterMessage] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._next_id = 1
        self._retired = False
        self._task: asyncio.Task[None] | None = None

    @property
    def worker_id(self) -> str:
        """The worker's name."""
        return self.info.worker_id

    @property
    def n_legs(self) -> int:
        """Parts of answers that run there by this session."""
        return len(self._legs)

    def start(self) -> None:
        """Begins to connect."""
        self._task = asyncio.create_task(self._run(), name=f"session {self.worker_id}")

    def retire(self, on_closed: Callable[[WorkerSession], None]) -> None:
        """The broker no longer knows the worker: nothing new goes there, what runs may end."""
        self._retired = True
        if self._task is not None:
            self._task.add_done_callback(lambda _task: on_closed(self))
        self._close_if_idle()

    @property
    def accepts(self) -> bool:
        """Whether new requests may go there."""
        return self.connected and not self.info.draining

    async def stop(self) -> None:
        """Closes the stream; what runs on it ends with worker_lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def submit(self, leg: Leg, submit: worker_pb2.Submit) -> None:
        """Sends a part of an answer; its events go to the leg from now on."""
        leg.stream_id = submit.stream_id = self._next_id
        self._next_id += 1
        self._legs[leg.stream_id] = leg
        self._send(worker_pb2.RouterMessage(submit=submit))

    def cancel(self, stream_id: int) -> None:
        """Tells the worker to end a part."""
        self._send(worker_pb2.RouterMessage(cancel=worker_pb2.Cancel(stream_id=stream_id)))

    def forget(self, stream_id: int) -> None:
        """Delivers nothing more to that part."""
        self._legs.pop(stream_id, None)
        if self._retired:
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._legs:
            # A cancel of the last part, queued in this turn of the loop, goes out first.
            asyncio.get_running_loop().call_later(LONGEST_PAUSE_S, self._close)

    def _close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _send(self, message: worker_pb2.RouterMessage) -> None:
        if self.connected:
            self._outbox.append(message)
            if self._wake is not None and not self._wake.done():
                self._wake.set_result(None)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            error = await self._serve_once()
            self._disconnect(error)
            if self._retired:
                return
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _serve_once(self) -> TwolaneError:
        """One stream from its opening to its end; returns why it ended."""
        channel = open_channel(self.info.address, self._tls, "worker")
        sender: asyncio.Task[None] | None = None
        try:
            stub = worker_pb2_grpc.WorkerStub(channel)
            call: Call = stub.Session()
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await call.write(worker_pb2.RouterMessage(hello=self._hello))
                self._welcome(await call.read())
            sender = asyncio.create_task(self._write(call), name=f"session writer {self.worker_id}")
            await self._read(call)
            return WorkerLost(f"worker {self.worker_id} closed its stream")
        except grpc.RpcError as error:
            return to_twolane_error(error)
        except TimeoutError:
            return WorkerLost(f"worker {self.worker_id} did not answer within {WELCOME_TIMEOUT_S:g} s")
        except TwolaneError as error:
            return error
        except Exception:
            log.exception("a session failed", extra={"worker_id": self.worker_id})
            return Internal(f"the session with worker {self.worker_id} failed; the log says why")
        except asyncio.CancelledError:
            self._disconnect(WorkerLost(f"the session with worker {self.worker_id} was closed"))
            raise
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            await channel.close()

    def _welcome(self, message: object) -> None:
        if not isinstance(message, worker_pb2.WorkerMessage):
            raise WorkerLost(f"worker {self.worker_id} closed the stream at once")
        welcome = message.welcome
        if welcome.worker_id != self.worker_id or welcome.incarnation != self.info.incarnation:
            raise Incompatible(
                f"{self.info.address} is worker {welcome.worker_id!r} of incarnation {welcome.incarnation}, "
                f"the broker says {self.worker_id!r} of incarnation {self.info.incarnation}"
            )
        self._check(fingerprint_from_proto(welcome.fingerprint))
        self.connected = True
        self.problem = ""
        log.info("worker connected", extra={"worker_id": self.worker_id, "address": self.info.address})
        self._on_change()

    async def _write(self, call: Call) -> None:
        outbox = self._outbox
        while True:
            while outbox:
                await call.write(outbox.popleft())
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    async def _read(self, call: Call) -> None:
        while True:
            message = await call.read()
            if not isinstance(message, worker_pb2.WorkerMessage):
                # End of stream: ask for the status, which raises unless it is OK.
                code = await call.code()
                if code is not grpc.StatusCode.OK:
                    raise WorkerLost(f"worker {self.worker_id} is gone: {await call.details()}")
                return
            if message.HasField("step"):
                events = message.step.events
                for start in range(0, len(events), EVENTS_PER_TURN):
                    if start:
                        # New requests get their turns between the tokens of a large batch.
                        await asyncio.sleep(0)
                    self._deliver(events[start : start + EVENTS_PER_TURN])
            elif message.HasField("load"):
                self.books.report(message.load, time.monotonic())

    def _deliver(self, events: Sequence[worker_pb2.RequestEvent]) -> None:
        for event in events:
            leg = self._legs.get(event.stream_id)
            if leg is None:
                continue
            try:
                leg.on_event(event)
            except Exception:
                log.exception("an event could not be handled", extra={"worker_id": self.worker_id})
                self._fail(leg)

    def _fail(self, leg: Leg) -> None:
        """Ends the part whose event raised: one request's defect must not take down the others."""
        self.cancel(leg.stream_id)
        self.forget(leg.stream_id)
        leg.lose(Internal("the answer could not be processed; the log says why"))

    def _disconnect(self, error: TwolaneError) -> None:
        was_connected, self.connected = self.connected, False
        self.problem = error.message
        self._outbox.clear()
        legs, self._legs = list(self._legs.values()), {}
        if was_connected:
            extra = {"worker_id": self.worker_id, "error": error.message, "requests": len(legs)}
            log.warning("worker lost", extra=extra)
        elif isinstance(error, Incompatible):
            log.error("worker refused", extra={"worker_id": self.worker_id, "error": error.message})
        for leg in legs:
            leg.lose(
                WorkerLost(f"worker {self.worker_id} was lost while it served the request", retry_after_s=1.0)
            )
        if was_connected:
            self._on_change()
