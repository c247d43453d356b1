"""A channel that dials anew, with new certificates, when they have changed.

`open_channel` returns it when TLS is on. Calls that have begun end on the connection they began on; stubs
made of it stay usable for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from twolane.rpc.certificates import Certificates
from twolane.rpc.tls import Tls

Dial = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]

# Streams of a replaced connection may go on as long as two processes know each other.
_NO_LIMIT_S = 10 * 365 * 86_400.0


class RotatingChannel(grpc.aio.Channel):
    """One peer's channel.

    Args:
        tls: whose certificates are shown.
        dial: opens a channel with credentials.
    """

    def __init__(self, tls: Tls, dial: Dial) -> None:
        self._tls = tls
        self._dial = dial
        self._of: Certificates = tls.current()
        self._inner = self._open()
        self._ending: set[asyncio.Task[None]] = set()
        self._retired: set[grpc.aio.Channel] = set()

    def inner(self) -> grpc.aio.Channel:
        """The channel for new calls."""
        current = self._tls.current()
        if current is not self._of:
            old, self._of = self._inner, current
            self._inner = self._open()
            self._retired.add(old)
            task = asyncio.get_running_loop().create_task(self._let_end(old), name="replaced-channel")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        return self._inner

    async def close(self, grace: float | None = None) -> None:
        """Ends this connection and all that it has replaced."""
        for task in list(self._ending):
            task.cancel()
        await asyncio.gather(*(each.close(grace) for each in (self._inner, *self._retired)))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self.inner().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self.inner().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self.inner().channel_ready()

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_unary", args, options)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_stream", args, options)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_unary", args, options)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_stream", args, options)

    async def __aenter__(self) -> RotatingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self) -> grpc.aio.Channel:
        current = self._of
        return self._dial(grpc.ssl_channel_credentials(current.authorities, current.key, current.chain))

    async def _let_end(self, channel: grpc.aio.Channel) -> None:
        await channel.close(_NO_LIMIT_S)
        self._retired.discard(channel)


class _Method:
    """A method of a stub: finds the channel of the moment at every call."""

    def __init__(self, channel: RotatingChannel, kind: str, args: Any, options: Any) -> None:
        self._channel = channel
        self._make = (kind, args, options)
        self._of: grpc.aio.Channel | None = None
        self._callable: Any = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        inner = self._channel.inner()
        if inner is not self._of:
            kind, made_with, made_options = self._make
            self._of, self._callable = inner, getattr(inner, kind)(*made_with, **made_options)
        return self._callable(*args, **options)
