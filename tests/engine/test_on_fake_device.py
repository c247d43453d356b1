"""The CUDA engine from load to drawn tokens, on a device that isn't there: what would fail or stall on a real
one.

Shapes, devices, launches and graphs are those of a GPU; contents are not looked at (`tests/kernels/ops` and
`kernel_path` do that).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import save_model
from tests.kernels.fake_device import FakeDevice, fake_device
from twolane.core.request import SamplingParams
from twolane.engine import graphs
from twolane.engine.config import EngineConfig, GraphSettings
from twolane.engine.engine import Engine
from twolane.engine.graphs import CudaRecorder
from twolane.engine.sequence import Row, Sampled, Sequence
from twolane.kernels import tuning

FAMILIES = ["llama", "llama3-rope-tied", "mistral-window", "qwen2-yarn", "qwen2-window", "qwen3", "long"]
PAGE_TOKENS = 16
N_LAYERS = 3


class Host:
    """Keeps sequences and pages, as a worker does."""

    def __init__(self, engine: Engine, device: FakeDevice) -> None:
        self.engine, self.device = engine, device
        self.random = random.Random(3)

    def prompt(self, n_tokens: int, **sampling: Any) -> Sequence:
        """A prompt with pages for itself and thirty tokens more."""
        pages = self.engine.pool.allocate(-(-(n_tokens + 30) // PAGE_TOKENS))
        tokens = [self.random.randrange(199) for _ in range(n_tokens)]
        params = SamplingParams(max_tokens=30, **({"temperature": 0.0} | sampling))
        return Sequence("r", tokens, n_tokens, params, page_ids=pages)

    def step(self, rows: list[Row]) -> list[Sampled | None]:
        """One step; drawn tokens are appended."""
        drawn = self.engine.step(rows)
        for row, token in zip(rows, drawn, strict=True):
            if token is not None:
                row.sequence.tokens.append(token.token_id)
        return drawn

    def launched(self, rows: list[Row]) -> Counter[str]:
        """Kernels of one step."""
        before = len(self.device.launches)
        self.step(rows)
        return Counter(self.device.names(before))


@pytest.fixture(autouse=True)
def _choices_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch configurations chosen on nothing must not be remembered."""
    monkeypatch.setenv(tuning.CACHE_FOLDER_VARIABLE, str(tmp_path / "choices"))
    monkeypatch.setattr(tuning, "_caches", {})


def settings(models: Any, family: str, folder: Path | None = None) -> EngineConfig:
    """An engine of the family with graphs for few rows and tokens."""
    if folder is None:
        models.oracle(family)
    return EngineConfig(
        folder or models.folder(family),
        device="cuda",
        dtype="bfloat16",
        kv_memory_bytes=96 << 20,
        page_tokens=PAGE_TOKENS,
        random_weights=True,
        graphs=GraphSettings(memory_bytes=64 << 20, max_rows=16, max_short_tokens=64),
    )


@pytest.fixture(params=FAMILIES)
def host(models: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """A loaded engine of each family, its graphs captured; and one of a model with long contexts."""
    folder = None
    if request.param == "long":
        folder = tmp_path / "model"
        save_model(folder, "qwen3", max_position_embeddings=3000)
    config = settings(models, request.param, folder)
    with fake_device() as device:
        yield Host(Engine.load(config), device)


def whole(sequence: Sequence) -> Row:
    """All that is left of it."""
    return Row(sequence, len(sequence.tokens) - sequence.n_computed, True)


def test_steps_of_every_kind_run_and_none_compiles_a_kernel(host: Host) -> None:
    """Chunks, mixed steps, batches of all sizes, any sampling: loading has compiled what they need."""
    compiled = set(host.device.forms)
    rng, longest = host.random, min(host.engine.fingerprint.max_model_len - 50, 1500)
    for number in range(12):
        penalties: dict[str, Any] = {"frequency_penalty": 0.5, "logit_bias": {3: 1.0}, "top_logprobs": 2}
        drawing: dict[str, Any] = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": number}
        kinds = [{}, drawing, penalties, {"min_tokens": 4, "stop_token_ids": frozenset({2})}]
        prompts = [
            host.prompt(rng.randrange(1, longest), **rng.choice(kinds)) for _ in range(1 + 2 * number % 19)
        ]
        chunked = host.prompt(90)
        assert host.step([Row(chunked, 50, False)]) == [None]
        assert all(host.step([*map(whole, prompts), Row(chunked, 40, True)]))
        assert all(host.step([whole(prompt) for prompt in prompts]))
        late = [host.prompt(rng.randrange(2, 40)) for _ in range(number % 3)]
        assert all(host.step([whole(row) for row in (*prompts, *late)]))
        for sequence in (*prompts, *late, chunked):
            host.engine.pool.release(sequence.page_ids)
    assert set(host.device.forms) == compiled


def test_a_step_launches_each_kernel_as_often_as_there_are_layers(host: Host) -> None:
    """Eagerly; a graph launches nothing but the sampler."""
    prompts = [host.prompt(n_tokens) for n_tokens in (70, 90)]
    per_layer = {"_rotary_page_write_kernel": N_LAYERS, "_silu_mul_kernel": N_LAYERS}
    others = {"_rms_norm_kernel": 2 * N_LAYERS + 1, "_sampling_kernel": 1}
    prefill = Counter(per_layer | others | {"_prefill_kernel": N_LAYERS})
    assert host.launched([whole(prompt) for prompt in prompts]) == prefill
    assert host.launched([whole(prompt) for prompt in prompts]) == {"_sampling_kernel": 1}
    assert host.launched([whole(host.prompt(30))]) == {"_sampling_kernel": 1}
    mixed = host.launched([whole(prompts[0]), whole(host.prompt(80))])
    assert mixed["_prefill_kernel"] == mixed["_decode_split_kernel"] == N_LAYERS


def test_the_host_waits_once_in_a_step(host: Host) -> None:
    """For the drawn tokens; whatever else waited would leave the device idle between kernels."""
    prompts = [host.prompt(n_tokens) for n_tokens in (70, 9)]
    for rows in ([whole(prompt) for prompt in prompts], [Row(host.prompt(100), 80, False)]):
        waited = host.device.waits
        host.step(rows)
        assert host.device.waits - waited == 1
    waited = host.device.waits
    host.step([whole(prompt) for prompt in prompts])
    assert host.device.waits - waited == 1


def test_few_forms_of_a_kernel_are_compiled_to_load(host: Host) -> None:
    """Each takes a second or more; of decode attention, candidates are compared."""
    counts = Counter(str(form["function"].fn.__name__) for form in host.device.forms.values())
    windows = len(set(host.engine.spec.windows))
    assert counts.pop("_decode_split_kernel") <= 7 * windows
    assert counts.pop("_prefill_kernel") <= 3 * windows
    assert max(counts.values()) <= 2


@pytest.mark.parametrize(("where", "name"), [(CudaRecorder, "record"), (graphs, "StaticInputs")])
def test_graphs_that_find_no_memory_are_left_out(
    models: Any, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    """The largest are there already; the rest runs kernel by kernel, whatever lacked the room."""
    real = getattr(where, name)
    count = 0

    def third_fails(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(*arguments)

    monkeypatch.setattr(where, name, third_fails)
    config = settings(models, "llama")
    with fake_device() as device:
        host = Host(Engine.load(config), device)
        assert (count, host.engine.n_graphs) == (3, 2)
        assert host.launched([whole(host.prompt(30))])["_prefill_kernel"] == 0
        assert host.launched([whole(host.prompt(5))])["_prefill_kernel"] == N_LAYERS


def test_an_engine_starts_where_graphs_are_refused(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says that it is slower for it."""

    def record(self: CudaRecorder, compute: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(CudaRecorder, "record", record)
    config = settings(models, "llama")
    with fake_device() as device:
        host = Host(Engine.load(config), device)
        assert host.engine.n_graphs == 0
        assert host.launched([whole(host.prompt(30))])["_prefill_kernel"] == N_LAYERS
