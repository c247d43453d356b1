"""A tiny model folder: tokenizer, chat template and configuration, without weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.router.scripted_cluster import ScriptedCluster, start_cluster
from tests.router.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte-level model named "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(autouse=True)
def _broker_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the broker misses is gone at once, where a test does not say otherwise."""
    monkeypatch.setattr("twolane.router.cluster.KEEP_MISSING_S", 0.0)


@pytest.fixture
async def cluster(model_dir: Path) -> AsyncIterator[ScriptedCluster]:
    """A router and a broker, without workers yet; asyncio's debug mode watches."""
    asyncio.get_running_loop().set_debug(True)
    made = await start_cluster(model_dir)
    yield made
    await made.stop()
    # gRPC's own tasks of a closed call end a few turns later.
    await made.until(lambda: not left_tasks())


def left_tasks() -> list[str]:
    """Tasks that outlive what started them."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    return [repr(task) for task in left if "pytest" not in repr(task)]


@pytest.fixture
async def http(cluster: ScriptedCluster) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the router's HTTP address."""
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(cluster.url, timeout=timeout) as session:
        yield session
