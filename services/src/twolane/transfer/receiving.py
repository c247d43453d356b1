"""One run on its way from a stream into pages: hands out room, checks the right to it before every read.

`landing.py` makes one per run, `stream_server.py` fills it. Between two reads the lease may end and the pages
go to another request: from then on the bytes are read past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import xxhash

from twolane.core.clock import Clock
from twolane.core.errors import LeaseInvalid
from twolane.transfer.transports import damaged

# One read takes at most so much: the event loop goes on to others in between.
MAX_READ_BYTES = 1 << 20


class Receiving:
    """The bytes of one run.

    Args:
        buffers: where they go, in order.
        is_open: whether the lease still lasts.
        done: called with the seconds since the first byte when all have come and are what was sent.
        now: clock of those seconds.
    """

    def __init__(
        self,
        buffers: Sequence[memoryview],
        is_open: Callable[[], bool],
        done: Callable[[float], None],
        now: Clock,
    ) -> None:
        self._buffers = [buffer for buffer in buffers if len(buffer)]
        self._is_open = is_open
        self._done = done
        self._digest = xxhash.xxh3_64()
        self._place = 0
        self._at = 0
        self._now = now
        self._began_s = now()

    def room(self) -> memoryview | None:
        """Where the next bytes go; None when the lease has ended and they may go nowhere."""
        if not self._is_open():
            return None
        return self._buffers[self._place][self._at : self._at + MAX_READ_BYTES]

    def filled(self, n_bytes: int) -> None:
        """So many bytes of the room that was handed out are there."""
        buffer = self._buffers[self._place]
        # At once, while the processor's cache still has them.
        self._digest.update(buffer[self._at : self._at + n_bytes])
        self._at += n_bytes
        if self._at == len(buffer):
            self._place, self._at = self._place + 1, 0

    def finish(self, checksum: int) -> None:
        """All bytes have come, and their checksum.

        Raises:
            LeaseInvalid: the lease ended meanwhile, or the bytes were damaged: nothing of them counts.
        """
        if not self._is_open():
            raise LeaseInvalid("the lease ended while its pages were on their way")
        if self._digest.intdigest() != checksum:
            raise damaged()
        self._done(self._now() - self._began_s)
