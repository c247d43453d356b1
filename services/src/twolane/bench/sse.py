"""Cuts a stream of server-sent events into the data of each event, however the bytes arrive.

The load generator and `twolane chat` read answers with it.
"""

from __future__ import annotations

from twolane.core.errors import Internal

DONE = b"[DONE]"
# An event is a piece of an answer; what grows beyond this is no event stream.
MAX_EVENT_BYTES = 16 * 1024 * 1024


class SseParser:
    """Takes bytes as they come; knows the part of the format that OpenAI's API uses (data lines)."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of every event that `piece` completes.

        Raises:
            Internal: the stream is none of events: a line has no end.
        """
        self._pending += piece
        *lines, rest = bytes(self._pending).split(b"\n")
        self._pending = bytearray(rest)
        if len(self._pending) > MAX_EVENT_BYTES:
            raise Internal("the answer is no stream of events: a line has no end")
        events = []
        for line in lines:
            content = line.removesuffix(b"\r")
            if content.startswith(b"data:"):
                self._data.append(content[5:].removeprefix(b" "))
            elif not content and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
