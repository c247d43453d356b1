"""Where a request's pieces go: into the bytes of an event stream, or together until the end.

The HTTP endpoints make one per request. A piece goes to the socket at once if it can; pieces that come
while the socket is busy wait here and leave in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Send

from twolane.core.errors import TwolaneError
from twolane.core.request import FinishReason
from twolane.router.answer import Answer
from twolane.router.asgi import Headers, error_body
from twolane.router.openai_format import DONE, Format, WholeChoice


class WholeSink:
    """Collects all answers."""

    def __init__(self, n_answers: int, *, logprobs: bool) -> None:
        self.choices = [WholeChoice() for _ in range(n_answers)]
        self._logprobs = logprobs
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_piece(self, answer: Answer, text: str, finish: FinishReason | None) -> None:
        """See generation.Sink."""
        choice = self.choices[answer.index]
        choice.texts.append(text)
        if self._logprobs:
            choice.logprobs += answer.take_logprobs()
        if finish is not None:
            choice.finish = finish

    def on_end(self, error: TwolaneError | None) -> None:
        """See generation.Sink."""
        if self._end.done():
            return
        if error is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(error)

    async def wait(self) -> None:
        """Returns when every answer has ended; raises why the request failed."""
        await self._end


class StreamSink:
    """Writes answers as server-sent events.

    Attributes:
        ended: the request is over.
    """

    def __init__(self, form: Format, *, logprobs: bool, write_now: Callable[[bytes], bool] | None) -> None:
        """`write_now` writes a chunk after the headers unless the connection is busy; None: there is none."""
        self.ended = False
        self._write_now = write_now
        # Set once the headers are out.
        self._direct: Callable[[bytes], bool] | None = None
        self._form = form
        self._logprobs = logprobs
        self._begun: set[int] = set()
        self._pending: list[bytes] = []
        self._error: TwolaneError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def on_piece(self, answer: Answer, text: str, finish: FinishReason | None) -> None:
        """See generation.Sink."""
        index, form = answer.index, self._form
        logprobs = answer.take_logprobs() if self._logprobs else ()
        data = form.piece(index, text, logprobs) if text or logprobs else b""
        if index not in self._begun:
            self._begun.add(index)
            data = form.first(index) + data
        if finish is not None:
            data += form.last(index, finish)
        if data:
            self._put(data)

    def on_end(self, error: TwolaneError | None) -> None:
        """See generation.Sink."""
        self.ended = True
        self._error = error
        self._wake()

    async def run(self, send: Send, headers: Headers, last: Callable[[], bytes]) -> None:
        """Writes until the request is over; `last` makes the event with the token counts, or b"".

        Raises:
            TwolaneError: the request failed before anything was written: the status can still say so.
        """
        await self._wait()
        if self._error is not None:
            raise self._error
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._direct = self._write_now
        while not self.ended:
            await send({"type": "http.response.body", "body": self._take(), "more_body": True})
            await self._wait()
        # The status is out: an error is the last event, and no [DONE] follows it.
        end = last() + DONE if self._error is None else b"data: " + error_body(self._error) + b"\n\n"
        await send({"type": "http.response.body", "body": self._take() + end, "more_body": False})

    def _put(self, data: bytes) -> None:
        waiter, direct = self._waiter, self._direct
        # Only while the task that writes is parked: otherwise older pieces may still be on their way.
        if direct is not None and waiter is not None and not waiter.done() and direct(data):
            return
        self._pending.append(data)
        self._wake()

    def _take(self) -> bytes:
        data = b"".join(self._pending)
        self._pending.clear()
        return data

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        if self._pending or self.ended:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
