"""One stream of pushes to one peer: messages of all requests, answered in order.

The sender keeps one per peer and kind. Runs are packed only when the stream can take them, so that a slow
peer holds back the sender and not its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import grpc

from twolane.core.errors import Internal, TwolaneError, WorkerLost
from twolane.rpc.channel import open_channel
from twolane.rpc.errors import silence_or_error
from twolane.rpc.handshake import meaning
from twolane.rpc.tls import Tls
from twolane.transfer.delivery import Delivery, Outbound
from twolane.v1 import transfer_pb2 as pb
from twolane.v1.transfer_pb2_grpc import PageTransferStub

# A peer takes its time while others keep it busy; one that says nothing for so long has stopped.
ANSWER_TIMEOUT_S = 60.0


class PushStream(ABC):
    """The stream to one peer; opens itself with its creation and ends when the peer is lost."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = False
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._unfinished: set[Delivery] = set()
        # One entry per push that waits for its answer, in the order written.
        self._unanswered: deque[Delivery] = deque()
        self._answers = 0
        self._task = asyncio.create_task(self._run(), name=f"push-{address}")

    def deliver(self, delivery: Delivery) -> None:
        """Queues a delivery behind the earlier ones."""
        if self.lost:
            delivery.fail(WorkerLost(f"the worker at {self.address} is lost", param="peer"))
            return
        self._unfinished = {known for known in self._unfinished if not known.ended} | {delivery}
        self._queue.put_nowait(delivery)

    async def close(self) -> None:
        """Ends the stream; deliveries that are under way fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @abstractmethod
    async def _open(self) -> None:
        """Connects."""

    @abstractmethod
    async def _send(self, outbound: Outbound) -> None:
        """Sends one push and its bytes; waits while the peer can't take them."""

    @abstractmethod
    async def _receive(self) -> pb.PagePushAck | None:
        """The next answer; None when the peer has closed the stream."""

    @abstractmethod
    async def _shut(self) -> None:
        """Lets go of the connection."""

    def _hint(self) -> str:
        """What may have made the peer close the stream, if more is known."""
        return ""

    async def _run(self) -> None:
        reason: TwolaneError | None = None
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._open()
            parts = (self._read(), self._write(), self._watch())
            tasks = {asyncio.create_task(part) for part in parts}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            reason = WorkerLost(f"the worker at {self.address} closed the page stream{self._hint()}")
        except grpc.RpcError as error:
            reason = silence_or_error(error, f"the worker at {self.address}")
        except OSError as error:
            why = str(error.strerror or error)
            reason = WorkerLost(f"the page stream to {self.address} broke: {meaning(why) or why}")
        except TwolaneError as error:
            reason = error
        except Exception as error:
            reason = Internal(f"sending pages to {self.address} failed: {error!r}")
            raise
        finally:
            self.lost = True
            if reason is not None and reason.retryable:
                # Not this worker is at fault: the router looks for another in the peer's place.
                reason.param = "peer"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for delivery in self._unfinished:
                delivery.fail(reason or WorkerLost(f"the stream to {self.address} was ended here"))
            await self._shut()

    async def _write(self) -> None:
        while True:
            delivery = await self._queue.get()
            for outbound in delivery.pushes:
                if delivery.ended:
                    break
                delivery.sent()
                self._unanswered.append(delivery)
                await self._send(outbound)
            delivery.all_sent()

    async def _read(self) -> None:
        while (ack := await self._receive()) is not None:
            self._answers += 1
            self._unanswered.popleft().answered(ack)

    async def _watch(self) -> None:
        """Ends the stream when its peer lives but answers nothing, though pushes wait for it."""
        while True:
            waited, answers = bool(self._unanswered), self._answers
            await asyncio.sleep(ANSWER_TIMEOUT_S)
            if waited and self._unanswered and self._answers == answers:
                raise WorkerLost(
                    f"the worker at {self.address} has answered no push for {ANSWER_TIMEOUT_S:g} s"
                )


class GrpcStream(PushStream):
    """Pushes as messages of the PageTransfer service."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self._channel = open_channel(address, tls, "worker")
        self._call: Any = None
        super().__init__(address)

    async def _open(self) -> None:
        self._call = PageTransferStub(self._channel).Push()

    async def _send(self, outbound: Outbound) -> None:
        await self._call.write(outbound.push)

    async def _receive(self) -> pb.PagePushAck | None:
        ack = await self._call.read()
        return None if ack is grpc.aio.EOF else ack

    async def _shut(self) -> None:
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()
