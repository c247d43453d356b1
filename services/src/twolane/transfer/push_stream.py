"""One stream of pushes to one peer: messages of all requests, answered in order.

The sender keeps one per peer. Runs are packed only when the stream can take them, so that a slow
peer holds back the sender and not its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from twolane.core.errors import TwolaneError, WorkerLost, error_from_code
from twolane.rpc.channel import open_channel, to_twolane_error
from twolane.v1 import transfer_pb2 as pb
from twolane.v1.transfer_pb2_grpc import PageTransferStub

# Called once per delivery: None when everything landed, else why not.
Done = Callable[[TwolaneError | None], None]


class Delivery:
    """A sequence of pushes that ends with one call of `done`."""

    def __init__(self, pushes: Iterator[pb.PagePush], done: Done) -> None:
        self.pushes = pushes
        self._done = done
        self._unanswered = 0
        self._all_sent = False
        self.ended = False

    def sent(self) -> None:
        """Counts a push that is on its way."""
        self._unanswered += 1

    def all_sent(self) -> None:
        """No further push follows."""
        self._all_sent = True
        self._end_if_answered()

    def answered(self, ack: pb.PagePushAck) -> None:
        """Takes the peer's answer to the oldest unanswered push."""
        self._unanswered -= 1
        if ack.error.code:
            self.fail(error_from_code(ack.error.code, ack.error.message))
        self._end_if_answered()

    def fail(self, error: TwolaneError) -> None:
        """Ends the delivery once, with an error."""
        if not self.ended:
            self.ended = True
            self._done(error)

    def _end_if_answered(self) -> None:
        if self._all_sent and self._unanswered == 0 and not self.ended:
            self.ended = True
            self._done(None)


class PushStream:
    """The stream to one peer; opens itself with its creation and ends when the peer is lost."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost = False
        self._channel = open_channel(address)
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._unfinished: set[Delivery] = set()
        # One entry per push that waits for its answer, in the order written.
        self._unanswered: deque[Delivery] = deque()
        self._task = asyncio.create_task(self._run(), name=f"push-{address}")

    def deliver(self, delivery: Delivery) -> None:
        """Queues a delivery behind the earlier ones."""
        if self.lost:
            delivery.fail(WorkerLost(f"the worker at {self.address} is lost"))
            return
        self._unfinished = {known for known in self._unfinished if not known.ended} | {delivery}
        self._queue.put_nowait(delivery)

    async def close(self) -> None:
        """Ends the stream; deliveries that are under way fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        call: Any = PageTransferStub(self._channel).Push()
        tasks = {asyncio.create_task(self._read(call)), asyncio.create_task(self._write(call))}
        reason: TwolaneError = WorkerLost(f"the worker at {self.address} closed the page stream")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for error in (task.exception() for task in done):
                if isinstance(error, grpc.RpcError):
                    reason = to_twolane_error(error)
                elif error is not None:
                    raise error
        finally:
            self.lost = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
            for delivery in self._unfinished:
                delivery.fail(reason)
            await self._channel.close()

    async def _write(self, call: Any) -> None:
        while True:
            delivery = await self._queue.get()
            for push in delivery.pushes:
                if delivery.ended:
                    break
                delivery.sent()
                self._unanswered.append(delivery)
                await call.write(push)
            delivery.all_sent()

    async def _read(self, call: Any) -> None:
        async for ack in call:
            self._unanswered.popleft().answered(ack)
