"""Two and four tensor-parallel ranks give the tokens of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twolane.core.errors import ConfigError
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.engine.parallel import Shard
from twolane.engine.parallel_settings import TensorParallel

RUN = Path(__file__).with_name("parallel_ranks.py")


def run(folder: Path, *sizes: int, device: str = "cpu") -> list[dict[str, Any]]:
    """What rank 0 printed for each number of ranks."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(RUN), str(folder), device, *map(str, sizes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(360)
def test_two_and_four_ranks_answer_like_one(new_folder: Callable[..., Path]) -> None:
    """With biases, tied embeddings and a vocabulary that does not divide; ranks keep their heads' pages."""
    folder = new_folder("llama3-rope-tied", num_key_value_heads=4)
    alone, *several = run(folder, 1, 2, 4)
    assert alone["kv"][3] == 4
    for size, together in zip((2, 4), several, strict=True):
        assert together["kv"][3] == 4 // size
        for one, many in zip(alone["answers"], together["answers"], strict=True):
            assert many["tokens"] == one["tokens"]
            assert many["logprobs"] == pytest.approx(one["logprobs"], abs=1e-4)


@pytest.mark.timeout(240)
def test_untied_heads_and_head_norms_split_too(new_folder: Callable[..., Path]) -> None:
    """Qwen3 with a head of its own on two ranks."""
    folder = new_folder("qwen3", tie_word_embeddings=False)
    one, two = run(folder, 1, 2)
    assert [answer["tokens"] for answer in two["answers"]] == [answer["tokens"] for answer in one["answers"]]


def test_heads_that_do_not_divide_are_refused(new_folder: Callable[..., Path]) -> None:
    """Before any rank waits for another."""
    place = TensorParallel(0, 4, "127.0.0.1:9")
    config = EngineConfig(new_folder(), device="cpu", n_pages=64, max_model_len=64, parallel=place)
    with pytest.raises(ConfigError, match="num_key_value_heads 2 can't be split over 4"):
        Engine.load(config)


@pytest.mark.parametrize(("total", "size"), [(199, 4), (8, 4), (3, 2), (1, 1)])
def test_parts_cover_everything_once(total: int, size: int) -> None:
    """In order, without gaps."""
    parts = [Shard(rank, size).part(total) for rank in range(size)]
    assert [unit for part in parts for unit in range(total)[part]] == list(range(total))


def test_a_single_engine_has_no_ranks_to_follow(models: Any) -> None:
    """follow() is refused, the other two calls do nothing."""
    engine = models.engine("llama")
    engine.keep_alive()
    engine.close()
    with pytest.raises(RuntimeError, match="other than 0"):
        engine.follow()
