"""Workers of two and four ranks, as real processes behind a real router, answer like a worker of one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
import transformers

from tests.e2e.conftest import eventually
from tests.e2e.test_sleep import Processes
from twolane.cli.topology import UpConfig, broker_child, model_folder, router_child, worker_children

# Prompts of tokens: random weights answer nothing that a person would ask.
PROMPTS = [[5 + i * 7 % 1900 for i in range(n)] for n in (3, 40, 150)]
MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose heads four ranks can share, with the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    demo = model_folder(UpConfig())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder / name)
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODEL)).save_pretrained(folder)
    return folder


@pytest.fixture
def processes(tmp_path: Path, model: Path) -> Iterator[Processes]:
    """Nothing yet; the random model is the one to serve."""
    made = Processes(tmp_path)
    made.config = made.config.model_copy(update={"model": str(model), "kv_memory_mib": 8})
    yield made
    made.stop_all()


def start(processes: Processes, **ranks: list[int]) -> str:
    """Broker, router and workers of so many ranks by role; returns the router's address."""
    counts = {role: len(ranks.get(role, [])) for role in ("prefill", "decode", "mixed")}
    config = processes.config.model_copy(update=counts)
    broker = processes.start(broker_child(config))["grpc"]
    sizes = [size for role in counts for size in ranks.get(role, [])]
    for worker, size in zip(worker_children(config, broker), sizes, strict=True):
        # All start at once: each takes its time.
        processes.start(worker, "--device", "cpu", "--tensor-parallel-size", str(size))
    return f"http://127.0.0.1:{processes.start(router_child(config, broker))['http']}"


def answers(url: str) -> list[str]:
    """Greedy answers to all prompts at once."""
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=100)
    eventually(lambda: bool(client.models.list().data), 60.0)
    name = client.models.list().data[0].id

    def ask(prompt: list[int]) -> str:
        done = client.completions.create(model=name, prompt=prompt, max_tokens=20, temperature=0)
        return str(done.choices[0].text)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(ask, PROMPTS))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[str]:
    """What a worker without ranks answers."""
    made = Processes(tmp_path_factory.mktemp("alone"))
    made.config = made.config.model_copy(update={"model": str(model), "kv_memory_mib": 8})
    try:
        return answers(start(made, mixed=[1]))
    finally:
        made.stop_all()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_four_ranks_answer_like_one_and_end_when_one_dies(processes: Processes, alone: list[str]) -> None:
    """Colocated, with spawned ranks; a rank that is killed takes the others with it at once."""
    url = start(processes, mixed=[4])
    assert answers(url) == alone
    assert len(set(alone)) == len(alone)
    first = psutil.Process(processes.pid("mixed-0"))
    ranks = [child for child in first.children() if "--tensor-parallel-rank" in " ".join(child.cmdline())]
    # pydantic's flags have the form --flag=value.
    ranks = ranks or [child for child in first.children() if "tensor-parallel-rank" in str(child.cmdline())]
    assert len(ranks) == 3
    ranks[1].send_signal(signal.SIGKILL)
    assert processes.wait("mixed-0", 60.0) == 1
    eventually(lambda: not any(_runs(rank) for rank in ranks), 60.0)
    assert "tensor-parallel rank 2 ended by SIGKILL" in processes.log("mixed-0")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_pages_travel_between_workers_of_other_numbers_of_ranks(
    processes: Processes, alone: list[str]
) -> None:
    """Prefill on two ranks, decode on four; SIGTERM ends all ranks in order."""
    assert answers(start(processes, prefill=[2], decode=[4])) == alone
    assert "handed_over" in processes.log("prefill-0")
    for name in ("prefill-0", "decode-0"):
        ranks = psutil.Process(processes.pid(name)).children()
        assert processes.stop(name) == 0
        psutil.wait_procs(ranks, 60.0)
        assert not any(_runs(rank) for rank in ranks)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_pages_travel_between_ranks_and_a_worker_without(processes: Processes, alone: list[str]) -> None:
    """To a plain worker from two ranks."""
    assert answers(start(processes, prefill=[2], decode=[1])) == alone


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tensor-parallel-size=3"], "num_attention_heads 8 can't be split over 3 tensor-parallel ranks"),
        (
            ["--tensor-parallel-size=2", "--tensor-parallel-rank=1", "--tensor-parallel-address=127.0.0.1:9"],
            "rank 1 did not find rank 0 at 127.0.0.1:9 within 2 s",
        ),
        (
            ["--tensor-parallel-size=2", "--tensor-parallel-rank=0", "--tensor-parallel-address=127.0.0.1:0"],
            "address '127.0.0.1:0' must be host:port",
        ),
        (["--tensor-parallel-size=2", "--tensor-parallel-rank=2"], "must be below --tensor-parallel-size 2"),
        (["--tensor-parallel-size=2", "--tensor-parallel-rank=1"], "needs --tensor-parallel-address"),
    ],
)
@pytest.mark.timeout(200)
def test_ranks_that_cannot_meet_end_with_one_clear_line(model: Path, flags: list[str], said: str) -> None:
    """Within the deadline, naming the number or address at fault."""
    command = [sys.executable, "-m", "twolane.cli.main", "worker", "--model-dir", str(model), "--device=cpu"]
    command += ["--port=0", "--http-port=0", "--tensor-parallel-timeout-s=2", "--kv-memory-mib=8", *flags]
    began_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert said in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began_s < 110


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
