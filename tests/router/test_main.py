"""The router as a process: its ports, its logs, its orderly end, and what keeps it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import aiohttp
import pytest

from tests.router.scripted_cluster import DEADLINE_S, ScriptedCluster
from tests.router.scripted_worker import ScriptedWorker
from tests.router.test_streaming import CHAT
from twolane.core.errors import ConfigError
from twolane.router.auth import read_api_keys
from twolane.router.config import RouterConfig
from twolane.telemetry.process import read_port_file

SECRET = "sk-very-secret-key"


async def start(cluster: ScriptedCluster, port_file: Path) -> tuple[Process, int]:
    """A router process beside the one of the fixture, at the same broker; its HTTP port."""
    command = [sys.executable, "-m", "twolane.router.main", "--model-dir", str(cluster.model_dir)]
    command += ["--broker", f"127.0.0.1:{cluster.broker._server.port}", "--port", "0"]
    command += ["--grpc-port", "0", "--port-file", str(port_file), "--drain-timeout-s", "5"]
    environment = os.environ | {"TWOLANE_ROUTER_API_KEYS": SECRET}
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environment)
    await cluster.until(port_file.exists)
    ports = read_port_file(port_file)
    assert ports is not None
    return process, ports["http"]


async def test_sigterm_lets_the_running_stream_end_and_leaves_nothing_behind(
    cluster: ScriptedCluster, tmp_path: Path
) -> None:
    """Status 0, logs in JSON with the request's id, the key nowhere in them."""
    worker = await cluster.add_mixed()
    process, port = await start(cluster, tmp_path / "ports.json")
    try:
        await _stop_in_the_middle(cluster, worker, process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _stop_in_the_middle(
    cluster: ScriptedCluster, worker: ScriptedWorker, process: asyncio.subprocess.Process, port: int
) -> None:
    headers = {"authorization": f"Bearer {SECRET}", "x-request-id": "follow-me"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as http:
        await cluster.until(lambda: len(worker.hellos) == 2)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with http.get("/readyz") as ready:
                    if ready.status == 200:
                        break
        worker.held = True
        call = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": True}))
        await cluster.until(lambda: bool(worker.requests))
        worker.step()
        response = await call
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with http.get("/readyz") as ready:
                    if ready.status == 503:
                        break
        worker.release()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    async with asyncio.timeout(DEADLINE_S):
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert SECRET not in errors.decode()
    lines = [json.loads(line) for line in errors.decode().splitlines()]
    ended = [line for line in lines if line.get("client_request_id") == "follow-me"]
    assert [(line["outcome"], line["process"]) for line in ended] == [("ok", "router")]
    assert ended[0]["request_id"].startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--model-dir", "."], r"config\.json is missing"),
        (["--port", "99999"], "--port"),
        (["--api-keys-file", "nowhere"], "nowhere"),
        ([], "--model-dir"),
    ],
)
async def test_a_router_that_can_not_start_says_why(
    model_dir: Path, tmp_path: Path, args: list[str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the setting or the file."""
    from twolane.router.app import RouterApp

    monkeypatch.chdir(tmp_path)
    if args and "--model-dir" not in args:
        args = [*args, "--model-dir", str(model_dir)]
    with pytest.raises(ConfigError, match=match):
        RouterApp(RouterConfig.from_args(args))


def test_settings_come_from_the_environment_and_keys_are_never_shown(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derived names; a typing error stops the start."""
    monkeypatch.setenv("TWOLANE_ROUTER_API_KEYS", SECRET)
    monkeypatch.setenv("TWOLANE_ROUTER_MAX_WAITING", "7")
    config = RouterConfig.from_args(["--model-dir", str(model_dir), "--served-model-name", "named"])
    assert (config.max_waiting, config.model_name) == (7, "named")
    assert SECRET not in repr(config)
    assert read_api_keys(config.api_keys.get_secret_value(), None).required
    monkeypatch.setenv("TWOLANE_ROUTER_MAX_WAITNG", "7")
    with pytest.raises(ConfigError, match="MAX_WAITNG"):
        RouterConfig.from_args(["--model-dir", str(model_dir)])


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    """An empty file must not mean that everyone may come in."""
    file = tmp_path / "keys"
    file.write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no key"):
        read_api_keys("", file)
