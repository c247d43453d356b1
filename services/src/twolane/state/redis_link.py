"""The wire to Redis: connections, deadlines and retries; redis.py speaks through it.

Every command is safe to repeat, so an answer lost on the way is asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript

from twolane.core.errors import ConfigError, Unavailable

Answer = TypeVar("Answer")

# A failing-over Redis refuses writes until its new primary is known.
_PASSING = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, OSError)
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_FEED_ENTRIES = 500


class RedisLink:
    """Runs commands within a deadline.

    Raises (all methods):
        Unavailable: Redis could not be reached within the deadline, or refuses for its own reasons.
        ConfigError: the address or its password is wrong.
    """

    def __init__(self, url: str, namespace: str, timeout_s: float, feed_limit: int) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._feed_limit = feed_limit
        try:
            self._client = self._connect(url, timeout_s)
            # A blocking read holds its connection longer than any other command may last.
            self._feed_client = self._connect(url, None)
        except ValueError as error:
            raise ConfigError(
                f"bad Redis address: {error}; use redis://host:6379/0", param="redis_url"
            ) from error
        self._scripts: dict[str, AsyncScript] = {}

    def _connect(self, url: str, timeout_s: float | None) -> Redis:
        return Redis.from_url(
            url,
            socket_connect_timeout=self._timeout_s,
            socket_timeout=timeout_s,
            socket_keepalive=True,
            # Retries are made here, under one deadline.
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )

    async def run(self, script: str, *arguments: str | bytes | int) -> Any:
        """The answer of a Lua script of redis_scripts.py."""
        if script not in self._scripts:
            self._scripts[script] = self._client.register_script(script)
        prepared = self._scripts[script]

        async def once() -> Any:
            return await prepared(keys=[self._namespace], args=[self._feed_limit, *arguments])

        return await self._until_deadline(once)

    async def members(self, name: str) -> set[bytes]:
        """Members of a set."""

        async def once() -> Any:
            return await self._client.smembers(f"{self._namespace}:{name}")

        return set(await self._until_deadline(once))

    async def read_feed(
        self, name: str, cursor: str, wait_s: float
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries of a stream after a cursor, waiting up to `wait_s` for the first."""
        key = f"{self._namespace}:{name}"
        block_ms = max(1, round(wait_s * 1000))

        async def once() -> Any:
            return await self._feed_client.xread({key: cursor or "0-0"}, count=_FEED_ENTRIES, block=block_ms)

        found = await self._until_deadline(once, wait_s)
        if not found:
            return []
        streams = found.values() if isinstance(found, dict) else (entries for _, entries in found)
        return [entry for entries in streams for entry in _flat(entries)]

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.aclose()
        await self._feed_client.aclose()

    async def _until_deadline(self, once: Callable[[], Awaitable[Answer]], extra_s: float = 0.0) -> Answer:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s + extra_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await once()
            except exceptions.AuthenticationError as error:
                raise ConfigError(
                    "Redis refuses the password in the Redis address", param="redis_url"
                ) from error
            except _PASSING as error:
                if loop.time() + pause_s >= deadline:
                    raise Unavailable(
                        f"Redis can't be reached within {self._timeout_s} s; is it up?", retry_after_s=1.0
                    ) from error
            except exceptions.RedisError as error:
                raise Unavailable(f"Redis refuses the command: {error}", retry_after_s=1.0) from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _flat(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    # RESP3 wraps each stream's entries once more.
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], (tuple, list)):
        return [entry for chunk in entries for entry in chunk]
    return list(entries)
