"""What only Redis can do to us: go away, come back with or without its data, refuse, fill up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from twolane.core.errors import ConfigError, LeaseInvalid, Unavailable
from twolane.state import redis_scripts
from twolane.state.records import Heartbeat, LeaseRequest
from twolane.state.redis import RedisState
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import TRANSPORT_GRPC

LONG_S = 600.0
Make = Callable[..., WorkerInfo]


def lease_request(owner: int, writer: int) -> LeaseRequest:
    return LeaseRequest("r", "d", owner, "p", writer, TRANSPORT_GRPC)


async def test_operations_ride_out_a_restart_that_keeps_the_data(own_redis: Any, make_worker: Make) -> None:
    """Calls made while Redis is down wait for it; books and numbers go on."""
    own_redis.start(keep_data=True)
    state = RedisState(own_redis.url, timeout_s=30.0)
    owner = (await state.register(make_worker("d"), [b"a" * 16], LONG_S)).incarnation
    writer = (await state.register(make_worker("p"), [], LONG_S)).incarnation
    before = await state.grant_lease(lease_request(owner, writer), LONG_S)
    position = (await state.snapshot()).position
    own_redis.stop()
    waiting = [asyncio.create_task(state.grant_lease(lease_request(owner, writer), LONG_S)) for _ in range(5)]
    beating = asyncio.create_task(state.heartbeat(Heartbeat("d", owner, WorkerInfo(), (b"b" * 16,)), LONG_S))
    following = asyncio.create_task(state.changes(position, 20.0))
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in [*waiting, beating])
    await asyncio.to_thread(own_redis.start, keep_data=True)
    granted = await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert await asyncio.wait_for(beating, 30)
    assert all(lease.fence > before.fence for lease in granted)
    assert len(await state.leases()) == 6
    assert await state.prefixes("d") == {b"a" * 16, b"b" * 16}
    changes = await asyncio.wait_for(following, 40)
    assert changes is not None
    assert [change.added for change in changes.items] == [(b"b" * 16,)]
    await state.close()


async def test_after_a_restart_without_data_workers_register_again(own_redis: Any, make_worker: Make) -> None:
    """Heartbeats say so, old leases are invalid, followers are told, and numbers still grow."""
    own_redis.start()
    state = RedisState(own_redis.url, timeout_s=30.0)
    owner = (await state.register(make_worker("d"), [], LONG_S)).incarnation
    writer = (await state.register(make_worker("p"), [], LONG_S)).incarnation
    before = await state.grant_lease(lease_request(owner, writer), LONG_S)
    position = (await state.snapshot()).position
    own_redis.stop()
    await asyncio.to_thread(own_redis.start)
    assert not await state.heartbeat(Heartbeat("d", owner, WorkerInfo()), LONG_S)
    assert await state.renew_leases("d", owner, [before.lease_id], LONG_S) == [before.lease_id]
    with pytest.raises(LeaseInvalid):
        await state.grant_lease(lease_request(owner, writer), LONG_S)
    assert await state.changes(position, 0.01) is None
    new_owner = (await state.register(make_worker("d"), [], LONG_S)).incarnation
    new_writer = (await state.register(make_worker("p"), [], LONG_S)).incarnation
    assert new_owner > writer > owner
    assert (await state.grant_lease(lease_request(new_owner, new_writer), LONG_S)).fence > before.fence
    assert await state.changes(position, 0.01) is None
    await state.close()


async def test_a_redis_that_stays_away_is_unavailable(own_redis: Any, make_worker: Make) -> None:
    """Every operation ends at its deadline with an error that can be retried."""
    state = RedisState(own_redis.url, timeout_s=0.2)
    with pytest.raises(Unavailable, match="Redis can't be reached") as caught:
        await state.register(make_worker("w"), [], LONG_S)
    assert caught.value.retryable
    with pytest.raises(Unavailable):
        await state.snapshot()
    await state.close()


async def test_a_hung_redis_is_unavailable() -> None:
    """A server that accepts and never answers does not hold an operation beyond its deadline."""
    done = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    state = RedisState(f"redis://127.0.0.1:{port}/0", timeout_s=0.2)
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            await state.workers()
    await state.close()
    done.set()
    server.close()


@pytest.mark.parametrize("login", ["", ":hunter2@"])
async def test_a_missing_or_wrong_password_is_a_configuration_error(own_redis: Any, login: str) -> None:
    """It names the setting, never the password."""
    own_redis.start(password="right-one")
    state = RedisState(own_redis.url.replace("redis://", f"redis://{login}"))
    with pytest.raises(ConfigError) as caught:
        await state.workers()
    await state.close()
    assert caught.value.param == "redis_url"
    assert "hunter2" not in str(caught.value)


def test_an_address_that_is_none_of_redis_is_a_configuration_error() -> None:
    """The message shows the form of a good one."""
    with pytest.raises(ConfigError, match="redis://host:6379/0"):
        RedisState("http://somewhere")


async def test_every_key_of_workers_and_leases_expires_by_itself(
    shared_redis: Any, make_worker: Make
) -> None:
    """Even if no broker ever sweeps: only the three counters' key stays."""
    namespace = "{" + uuid.uuid4().hex + "}"
    state = RedisState(shared_redis.url, namespace=namespace)
    owner = (await state.register(make_worker("d"), [b"a" * 16], 5.0)).incarnation
    writer = (await state.register(make_worker("p"), [b"a" * 16], 5.0)).incarnation
    await state.grant_lease(lease_request(owner, writer), 5.0)
    await state.heartbeat(Heartbeat("d", owner, WorkerInfo(draining=True), (b"b" * 16,)), 5.0)
    client = Redis.from_url(shared_redis.url)
    lasting = {}
    async for key in client.scan_iter(f"{namespace}:*"):
        lasting[key.decode().removeprefix(f"{namespace}:")] = await client.pttl(key)
    await client.aclose()
    await state.close()
    assert lasting.pop("meta") == -1
    assert 0 < lasting.pop("changes") <= redis_scripts.FEED_TTL_MS
    names = {"workers", "leases", "worker:d", "worker:p", "prefix:d", "prefix:p"}
    assert names < lasting.keys()
    assert len(lasting) == len(names) + 1
    assert all(0 < ttl_ms <= 5_000 + redis_scripts.GRACE_MS for ttl_ms in lasting.values())


async def test_two_brokers_share_one_redis(shared_redis: Any, make_worker: Make) -> None:
    """What one replica writes the other reads, and fences grow over both."""
    namespace = "{" + uuid.uuid4().hex + "}"
    one, two = (RedisState(shared_redis.url, namespace=namespace) for _ in range(2))
    owner = (await one.register(make_worker("d"), [b"a" * 16], LONG_S)).incarnation
    writer = (await two.register(make_worker("p"), [], LONG_S)).incarnation
    fences = []
    for state in (one, two, one, two):
        fences.append((await state.grant_lease(lease_request(owner, writer), LONG_S)).fence)
    assert fences == sorted(set(fences))
    assert await two.prefixes("d") == {b"a" * 16}
    await one.close()
    await two.close()


async def test_entries_trimmed_while_a_follower_waits_are_noticed(
    shared_redis: Any, make_worker: Make
) -> None:
    """A feed that vanished although changes were made asks for a snapshot instead of waiting forever."""
    namespace = "{" + uuid.uuid4().hex + "}"
    state = RedisState(shared_redis.url, namespace=namespace)
    await state.register(make_worker("w"), [], LONG_S)
    position = (await state.snapshot()).position
    await state.register(make_worker("v"), [], LONG_S)
    client = Redis.from_url(shared_redis.url)
    await client.delete(f"{namespace}:changes")
    await client.aclose()
    assert await state.changes(position, 0.01) is None
    await state.close()
