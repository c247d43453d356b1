"""uvicorn's HTTP protocol with two additions: a limit on clients that take nothing, and direct chunks.

Without the limit a client that never reads holds its connection, and what is buffered for it, for
ever: closing waits until the buffer is empty. Direct chunks spare a token the wake-up of a task and
its way through ASGI. `app.py` passes the protocol to uvicorn.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

DIRECT_CHUNK = "twolane.direct_chunk"
"""ASGI extension: writes a chunk of a response that has begun, if the connection takes it at once."""


class StallGuardProtocol(HttpToolsProtocol):
    """Cuts a connection off whose send buffer does not shrink."""

    write_timeout_s = 30.0
    _stall_timer: asyncio.TimerHandle | None = None
    _stalled_bytes = 0

    def on_message_begin(self) -> None:
        """A request begins: its scope offers direct chunks."""
        super().on_message_begin()
        self.scope["extensions"] = {DIRECT_CHUNK: {"write": self.write_chunk}}

    def write_chunk(self, data: bytes) -> bool:
        """Writes a chunk of the running response; False, and nothing written, when it has to wait.

        Only for responses without a length, between their headers and their last part.
        """
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def pause_writing(self) -> None:
        """The client is slow: its buffer must shrink from now on."""
        super().pause_writing()
        self._watch_buffer()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._forget_buffer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._forget_buffer()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, even one whose last response was never read."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_buffer()

    def shutdown(self) -> None:
        """The server stops: the same care for what was never read."""
        super().shutdown()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_buffer()

    def _watch_buffer(self) -> None:
        self._forget_buffer()
        self._stalled_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.write_timeout_s, self._check_buffer)

    def _forget_buffer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _check_buffer(self) -> None:
        self._stall_timer = None
        left = self.transport.get_write_buffer_size()
        if left == 0:
            return
        if left < self._stalled_bytes:
            self._watch_buffer()
            return
        log.warning("client cut off: it takes nothing", extra={"buffered_bytes": left})
        self.transport.abort()


def stall_guard(write_timeout_s: float) -> type[HttpToolsProtocol]:
    """The protocol class with this limit."""
    return type("StallGuardProtocol", (StallGuardProtocol,), {"write_timeout_s": write_timeout_s})
