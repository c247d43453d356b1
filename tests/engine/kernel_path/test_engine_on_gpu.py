"""A whole engine on a CUDA device, graphs included, against transformers on the CPU."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.engine.test_parallel import run
from twolane.core.request import SamplingParams
from twolane.engine.config import EngineConfig, GraphSettings
from twolane.engine.engine import Engine
from twolane.engine.sequence import Row, Sequence

pytestmark = pytest.mark.gpu
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, top_logprobs=0)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen2-yarn", "qwen3"])
def test_greedy_output_on_a_gpu_equals_transformers(models: Any, family: str) -> None:
    """float32 with TF32 off: the oracle's argmax at every place where its two best are apart."""
    oracle = models.oracle(family)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = EngineConfig(
        models.folder(family),
        device="cuda",
        dtype="float32",
        kv_memory_bytes=512 << 20,
        max_model_len=128,
        graphs=GraphSettings(memory_bytes=128 << 20, max_rows=8, max_short_tokens=64),
    )
    engine = Engine.load(config)
    assert engine.graph_budget_bytes == 128 << 20
    assert engine.n_graphs == 7
    rng = random.Random(1)
    prompts = [[rng.randrange(199) for _ in range(n)] for n in (5, 23, 61, 40, 9)]
    sequences = [Sequence("r", list(p), len(p), GREEDY, page_ids=engine.pool.allocate(6)) for p in prompts]
    rows = [Row(sequence, sequence.n_prompt, True) for sequence in sequences]
    for _ in range(16):
        for sequence, drawn in zip(sequences, engine.step(rows), strict=True):
            assert drawn is not None
            sequence.tokens.append(drawn.token_id)
        rows = [Row(sequence, 1, True) for sequence in sequences]
    for sequence in sequences:
        with torch.no_grad():
            expected = oracle(torch.tensor([list(sequence.tokens)])).logits[0]
        for place in range(sequence.n_prompt, len(sequence.tokens)):
            best = expected[place - 1].topk(2)
            if best.values[0] - best.values[1] > 1e-2:
                assert sequence.tokens[place] == best.indices[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_answer_like_one(new_folder: Any) -> None:
    """Over NCCL, each rank on a GPU of its own."""
    one, two = run(new_folder("llama3-rope-tied"), 1, 2, device="cuda")
    for alone, shared in zip(one["answers"], two["answers"], strict=True):
        assert shared["tokens"] == alone["tokens"]
        assert shared["logprobs"] == pytest.approx(alone["logprobs"], abs=1e-3)
