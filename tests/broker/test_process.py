"""The broker as a process: signals, port file, probes, bad settings, Redis behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from twolane.broker.config import BrokerConfig
from twolane.broker.main import main
from twolane.core.errors import ConfigError, Draining, NotFound, Unavailable
from twolane.rpc.channel import open_channel, to_twolane_error
from twolane.telemetry.process import read_port_file
from twolane.v1 import broker_pb2 as pb
from twolane.v1.broker_pb2_grpc import BrokerStub

Make = Callable[..., pb.WorkerInfo]
DEADLINE_S = 30.0


async def eventually(reached: Callable[[], Any]) -> None:
    """Polls until the (possibly awaitable) condition holds; fails at a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            answer = reached()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.02)


def launch(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """Starts a broker process; returns it with its bound ports."""
    port_file = folder / "ports.json"
    command = [sys.executable, "-m", "twolane.broker.main", "--port", "0", "--http-port", "0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}
    process = subprocess.Popen(
        [*command, "--port-file", str(port_file), *flags], stderr=subprocess.PIPE, text=True, env=clean
    )
    deadline = time.monotonic() + DEADLINE_S
    while (ports := read_port_file(port_file)) is None:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, ports


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_serves_and_stops_on_a_signal(
    tmp_path: Path, make_worker: Make, number: int
) -> None:
    """Exit status 0, one "listening" line with the bound ports, a watch is told, nothing is left over."""
    process, ports = await asyncio.to_thread(launch, tmp_path, "--settle-s", "0")
    try:
        channel = open_channel(f"127.0.0.1:{ports['grpc']}")
        stub: Any = BrokerStub(channel)
        await stub.Register(pb.RegisterRequest(worker=make_worker("w")), wait_for_ready=True)
        watch = stub.Watch(pb.WatchRequest())
        assert [worker.worker_id for worker in (await watch.read()).workers] == ["w"]
        process.send_signal(number)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert isinstance(to_twolane_error(caught.value), Draining)
        _, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
        await channel.close()
    finally:
        process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    [listening] = [line for line in lines if line["msg"] == "listening"]
    assert (listening["ports"], listening["process"]) == (ports, "broker")
    assert lines[-1]["msg"] == "stopped"
    assert all(line["level"] == "INFO" for line in lines)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Gives the test runner its log handlers back after a process configured its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.mark.usefixtures("own_logging")
def test_bad_settings_end_the_process_with_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and the flag is named."""
    assert main(["--lease-ttl-s", "soon"]) == 2
    assert "--lease-ttl-s" in capsys.readouterr().err
    assert main(["--worker-ttl-s", "1", "--heartbeat-interval-s", "1"]) == 2
    assert "heartbeat_interval_s must be below worker_ttl_s" in capsys.readouterr().err
    assert main(["--redis-url", "http://nowhere", "--port", "0", "--http-port", "0"]) == 2
    assert "redis://host:6379/0" in capsys.readouterr().err


async def test_a_port_that_is_taken_is_a_configuration_error(running: Any, start_broker: Any) -> None:
    """It is said which one."""
    taken = running.broker.ports
    with pytest.raises(ConfigError, match=f":{taken['grpc']}"):
        await start_broker(port=taken["grpc"])
    with pytest.raises(ConfigError, match=f":{taken['http']}"):
        await start_broker(http_port=taken["http"])


def test_every_setting_is_described_and_none_shows_the_password() -> None:
    """--help explains each; the representation of a configuration can be logged."""
    assert all(field.description for field in BrokerConfig.model_fields.values())
    assert "hunter2" not in repr(BrokerConfig(redis_url="redis://:hunter2@host/0"))


async def test_health_and_readiness_follow_the_state(running: Any) -> None:
    """gRPC health and /readyz agree; /metrics has the broker's and the call's metrics."""
    health: Any = health_pb2_grpc.HealthStub(running.channel)

    async def status(service: str) -> int:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)

    async def ready() -> bool:
        return await status("readiness") == int(health_pb2.HealthCheckResponse.SERVING)

    await eventually(ready)
    assert await status("twolane.v1.Broker") == health_pb2.HealthCheckResponse.SERVING
    await running.stub.Inspect(pb.BrokerInspectRequest())
    http = f"http://127.0.0.1:{running.broker.ports['http']}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{http}/readyz") as answer:
            assert answer.status == 200
        async with session.get(f"{http}/metrics") as answer:
            text = await answer.text()
    assert "twolane_broker_workers" in text
    assert 'twolane_rpc_server_duration_seconds_count{code="OK",method="/twolane.v1.Broker/Inspect"}' in text


async def test_a_restarted_broker_lets_workers_come_back_before_it_tells_watchers(
    start_broker: Any, make_worker: Make
) -> None:
    """No watcher sees an empty cluster just because the broker forgot it."""
    running = await start_broker(settle_s=0.3)
    watch = running.stub.Watch(pb.WatchRequest())
    await running.stub.Register(pb.RegisterRequest(worker=make_worker("w")))
    async with asyncio.timeout(DEADLINE_S):
        event = await watch.read()
    assert event.snapshot
    assert [worker.worker_id for worker in event.workers] == ["w"]
    watch.cancel()


async def test_a_broker_without_its_redis_is_alive_and_not_ready(start_broker: Any, own_redis: Any) -> None:
    """It says why, answers Unavailable, and is ready as soon as Redis comes."""
    running = await start_broker(redis_url=own_redis.url, redis_timeout_s=0.2)
    http = f"http://127.0.0.1:{running.broker.ports['http']}"
    async with aiohttp.ClientSession() as session:

        async def readiness() -> str:
            async with session.get(f"{http}/readyz") as answer:
                return f"{answer.status} {await answer.text()}"

        async def says_why() -> bool:
            return (await readiness()).startswith("503 Redis can't be reached")

        async def is_ready() -> bool:
            return (await readiness()).startswith("200")

        await eventually(says_why)
        async with session.get(f"{http}/healthz") as answer:
            assert answer.status == 200
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Inspect(pb.BrokerInspectRequest())
        assert isinstance(to_twolane_error(caught.value), Unavailable)
        await asyncio.to_thread(own_redis.start)
        await eventually(is_ready)


async def test_losing_redis_and_its_data_loses_no_worker_for_watchers(
    start_broker: Any, own_redis: Any, make_worker: Make
) -> None:
    """Workers are told to register again; watchers, also of a second replica, never see them gone."""
    own_redis.start()
    settings = {"redis_url": own_redis.url, "worker_ttl_s": 600.0, "heartbeat_interval_s": 0.05}
    one, two = await start_broker(**settings), await start_broker(**settings)
    first = await one.stub.Register(pb.RegisterRequest(worker=make_worker("w"), prefix_hashes=[b"a" * 16]))
    watch = two.stub.Watch(pb.WatchRequest())
    seen: list[pb.ClusterEvent] = []

    async def incarnation_seen(wanted: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not any(w.incarnation == wanted for event in seen for w in event.workers):
                seen.append(await watch.read())

    await incarnation_seen(first.incarnation)
    own_redis.stop()
    await asyncio.to_thread(own_redis.start)
    beat = pb.HeartbeatRequest(worker_id="w", incarnation=first.incarnation)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await one.stub.Heartbeat(beat, wait_for_ready=True, timeout=DEADLINE_S)
    assert isinstance(to_twolane_error(caught.value), NotFound)

    # The replica's copy is of before the loss until it has noticed it.
    def noticed() -> bool:
        return bool(two.metric("resyncs_total", reason="data_lost") >= 1)

    await eventually(noticed)
    again = await one.stub.Register(
        pb.RegisterRequest(worker=make_worker("w"), prefix_hashes=[b"a" * 16, b"b" * 16])
    )
    await incarnation_seen(again.incarnation)
    assert not any(event.gone for event in seen)
    assert [list(delta.added) for delta in seen[-1].prefixes] == [[b"a" * 16, b"b" * 16]]
    assert sum(event.snapshot for event in seen) == 1
    watch.cancel()
