"""The kernel path equals the torch path, eagerly and replayed from every bucket in any order.

Runs compiled on a CUDA device; elsewhere under Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from twolane.core.request import SamplingParams
from twolane.engine.batch import pack
from twolane.engine.buckets import Bucket, Gate, Grid, Kind
from twolane.engine.config import EngineConfig
from twolane.engine.graphs import CudaRecorder, Recorder
from twolane.engine.kernel_forward import KernelForward
from twolane.engine.loading import Loaded, load
from twolane.engine.sequence import Row, Sequence
from twolane.engine.torch_forward import TorchForward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 2e-2 if DEVICE == "cuda" else 1e-4
WIDE = Gate(idle_ratio=100.0, busy_ratio=100.0)
GREEDY = SamplingParams(max_tokens=4, temperature=0.0)


class RepeatRecorder:
    """Records nothing: repeats the computation on the fixed inputs into a fixed result, as a graph does."""

    def __init__(self) -> None:
        self.n_replays = 0

    def record(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Runs once, with inputs still empty, as capturing does."""
        result = compute().clone()

        def replay() -> None:
            self.n_replays += 1
            result.copy_(compute())

        return replay, result

    def used_bytes(self) -> int:
        """Counts nothing."""
        return 0


def recorder() -> Recorder:
    """The real one where there is a device."""
    return CudaRecorder(torch.device("cuda", 0)) if DEVICE == "cuda" else RepeatRecorder()


class Pair:
    """One model with two pools: the torch path's and the kernel path's."""

    def __init__(self, folder: Any) -> None:
        def loaded(device: str) -> Loaded:
            config = EngineConfig(folder, device=device, n_pages=40, page_tokens=4, max_model_len=64)
            return load(config, lambda _: None)

        reference, tested = loaded("cpu"), loaded(DEVICE)
        self.torch = TorchForward(reference.model, reference.kv, copy_limit_bytes=0)
        self.kernels = KernelForward(tested.model, tested.kv, max_model_len=64)
        self.pools = (reference.kv, tested.kv)
        self.random = random.Random(4)
        self._next_page = 0

    def sequence(self, n_prompt: int) -> Sequence:
        """A random prompt with pages for eight more tokens, the same pages in both pools."""
        n_pages = -(-(n_prompt + 8) // 4)
        pages = [(self._next_page + i) * 7 % 40 for i in range(n_pages)]
        self._next_page += n_pages
        tokens = [self.random.randrange(199) for _ in range(n_prompt)]
        return Sequence("r", tokens, n_prompt, GREEDY, page_ids=pages)

    @torch.inference_mode()
    def step(self, rows: list[Row]) -> None:
        """Runs both paths and compares logits and pages; appends a fixed next token."""
        order = self.kernels.order(rows)
        batch = pack(rows, order, 4)
        logits = self.kernels.run(rows, batch).float().cpu()
        expected = self.torch.run(rows, pack(rows, self.torch.order(rows), 4))
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(self.pools[1].cpu(), self.pools[0], atol=TOLERANCE, rtol=0)
        for row in rows:
            row.sequence.n_computed += row.n_tokens
            if row.sequence.n_computed == len(row.sequence.tokens):
                row.sequence.tokens.append(self.random.randrange(199))


@pytest.mark.parametrize("family", ["mistral-window", "qwen2-yarn", "qwen3"])
def test_kernels_equal_torch_in_a_mixed_step(models: Any, family: str) -> None:
    """Prefill, a chunk with context beside a decode row, then decode of rows of different lengths."""
    models.oracle(family)
    pair = Pair(models.folder(family))
    first, second = pair.sequence(5), pair.sequence(27)
    pair.step([Row(second, 4, False)])
    pair.step([Row(first, 5, True), Row(second, 13, False)])
    pair.step([Row(second, 10, True), Row(first, 1, True)])
    pair.step([Row(first, 1, True), Row(second, 1, False)])


@torch.inference_mode()
def test_a_rank_that_follows_computes_a_mixed_step_without_its_rows(models: Any) -> None:
    """It receives the packed step alone, and must come to the first rank's logits."""
    models.oracle("qwen3")
    pair = Pair(models.folder("qwen3"))
    rows = [Row(pair.sequence(1), 1, True), Row(pair.sequence(5), 5, True)]
    batch = pack(rows, pair.kernels.order(rows), 4)
    assert 0 < batch.n_decode < len(rows)
    expected = pair.kernels.run(rows, batch).clone()
    torch.testing.assert_close(pair.kernels.run((), batch), expected, atol=0, rtol=0)


def test_every_bucket_replays_what_an_eager_step_computes(models: Any) -> None:
    """Each bucket twice, in an order that makes stale inputs of larger steps visible."""
    models.oracle("qwen3")
    pair = Pair(models.folder("qwen3"))
    buckets = [Bucket(Kind.DECODE, 1, 1), Bucket(Kind.DECODE, 4, 4)]
    buckets += [Bucket(Kind.PREFILL, 1, 8), Bucket(Kind.PREFILL, 4, 16)]
    used = recorder()
    pair.kernels.capture(Grid(tuple(buckets)), WIDE, used)
    a, b, c = pair.sequence(6), pair.sequence(5), pair.sequence(4)
    pair.step([Row(a, 6, True), Row(b, 5, False), Row(c, 4, True)])
    d = pair.sequence(3)
    pair.step([Row(d, 3, True)])
    pair.step([Row(a, 1, True), Row(b, 1, False) if b.n_computed < len(b.tokens) else Row(d, 1, True)])
    pair.step([Row(c, 1, True)])
    pair.step([Row(a, 1, True), Row(c, 1, True), Row(d, 1, True)])
    e = pair.sequence(2)
    pair.step([Row(e, 2, True)])
    pair.step([Row(c, 1, True)])
    if isinstance(used, RepeatRecorder):
        assert used.n_replays == 7
    assert sum(pair.kernels.observed.counts.values()) == 7


def test_a_prompt_with_one_token_left_replays_beside_longer_ones_or_beside_answers(models: Any) -> None:
    """All but its last token are cached: a short prompt among prompts, a decode row among decode rows."""
    models.oracle("llama")
    pair = Pair(models.folder("llama"))
    used = recorder()
    pair.kernels.capture(Grid((Bucket(Kind.DECODE, 2, 2), Bucket(Kind.PREFILL, 3, 16))), WIDE, used)
    a, b, c = pair.sequence(7), pair.sequence(9), pair.sequence(6)
    pair.step([Row(a, 6, False), Row(c, 5, False)])
    pair.step([Row(b, 9, True), Row(a, 1, True)])
    pair.step([Row(b, 1, True), Row(c, 1, True)])
    if isinstance(used, RepeatRecorder):
        assert used.n_replays == 3
    assert {kind for kind, _, _ in pair.kernels.observed.counts} == {Kind.PREFILL, Kind.DECODE}


def test_steps_that_fit_no_bucket_run_eagerly(models: Any) -> None:
    """Mixed steps, too many rows, and padding beyond the gate."""
    models.oracle("llama")
    pair = Pair(models.folder("llama"))
    used = recorder()
    pair.kernels.capture(Grid((Bucket(Kind.DECODE, 1, 1), Bucket(Kind.PREFILL, 2, 16))), Gate(), used)
    a, b = pair.sequence(7), pair.sequence(20)
    pair.step([Row(a, 7, True)])
    pair.step([Row(a, 1, True), Row(b, 8, False)])
    pair.step([Row(b, 12, True)])
    pair.step([Row(a, 1, True), Row(b, 1, True)])
    if isinstance(used, RepeatRecorder):
        assert used.n_replays == 1
