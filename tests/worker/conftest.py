"""A tiny random model, its greedy answers by transformers, and workers around it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import save_model
from tests.worker.stack import DEADLINE_S, Pair, RouterEnd, RunningWorker, until


class Oracle:
    """Greedy answers of the same weights by transformers."""

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder = folder
        self._model = model

    def answer(self, tokens: list[int], max_tokens: int) -> list[int]:
        """The tokens that must come."""
        prompt = torch.tensor([tokens])
        with torch.inference_mode():
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
        return list(output[0, len(tokens) :].tolist())


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """One model for all worker tests."""
    folder = tmp_path_factory.mktemp("worker-model") / "tiny"
    return Oracle(folder, save_model(folder, "llama"))


@pytest.fixture
async def new_worker(oracle: Oracle) -> AsyncIterator[Callable[..., Any]]:
    """Starts workers, stopped at the end."""
    workers: list[RunningWorker] = []

    async def start(
        role: str, broker: str = "127.0.0.1:1", folder: Path | None = None, **settings: Any
    ) -> RunningWorker:
        worker = RunningWorker(folder or oracle.folder, broker, role, **settings)
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.close()


@pytest.fixture
async def new_router() -> AsyncIterator[Callable[[RunningWorker], Any]]:
    """Opens sessions, closed at the end."""
    routers: list[RouterEnd] = []

    async def connect(worker: RunningWorker) -> RouterEnd:
        router = RouterEnd(worker)
        routers.append(router)
        await router.open()
        return router

    yield connect
    for router in routers:
        await router.close()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[str]:
    """A broker process with its state in memory; its host:port."""
    port_file = tmp_path / "broker.json"
    command = [sys.executable, "-m", "twolane.cli.main", "broker", "--port", "0", "--http-port", "0"]
    with (tmp_path / "broker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, "--port-file", str(port_file), stderr=log)
        await until(lambda: port_file.exists() or process.returncode is not None)
        assert process.returncode is None, (tmp_path / "broker.log").read_text()
        yield f"127.0.0.1:{json.loads(port_file.read_text())['grpc']}"
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0


@pytest.fixture
async def new_pair(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], broker: str
) -> Callable[..., Any]:
    """Starts pairs."""

    async def start(**settings: Any) -> Pair:
        prefill = await new_worker("prefill", broker, **settings)
        decode = await new_worker("decode", broker, **settings)
        for worker in (prefill, decode):
            await worker.registered()
        return Pair(prefill, decode, (await new_router(prefill), await new_router(decode)))

    return start
