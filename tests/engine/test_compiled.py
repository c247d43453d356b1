"""Compiled functions equal torch on odd shapes; an engine without a compiler or its cache still serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from twolane.engine import compiled, cpu_forward
from twolane.engine.compiled_attention import CompiledAttention
from twolane.engine.compiled_cache import CACHE_FOLDER_VARIABLE, cache_folder
from twolane.engine.compiled_forward import CompiledForward
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.engine.few_rows import Matrix
from twolane.engine.packed import can_pack, pack
from twolane.engine.torch_forward import TorchForward
from twolane.engine.torch_plan import PageLayout
from twolane.engine.vector_parts import LANES

EPS = 1e-6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 48), (17, 257)])
def test_norms_equal_torch(rows: int, size: int) -> None:
    """With and without an addition to the stream, which is then the sum."""
    stream, added, weight = torch.randn(rows, size), torch.randn(rows, size), torch.randn(size)
    found = torch.full((rows, size), torch.nan)
    compiled.norm(stream.numpy(), weight.numpy(), np.float32(EPS), found.numpy())
    torch.testing.assert_close(found, functional.rms_norm(stream, (size,), weight, EPS))
    total = stream + added
    compiled.add_norm(stream.numpy(), added.numpy(), weight.numpy(), np.float32(EPS), found.numpy())
    torch.testing.assert_close(stream, total)
    torch.testing.assert_close(found, functional.rms_norm(total, (size,), weight, EPS))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (5, 33), (16, 704)])
def test_silu_mul_equals_torch_far_beyond_the_range_of_exp(rows: int, size: int) -> None:
    """Gates of any size, so that no exponential overflows."""
    both = torch.randn(rows, 2 * size) * 100
    found = torch.full((rows, size), torch.nan)
    compiled.silu_mul(both.numpy(), found.numpy())
    expected = functional.silu(both[:, :size]) * both[:, size:]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-30)


def test_head_norms_touch_the_first_heads_alone() -> None:
    """Queries and keys are normed, values stay."""
    heads, weight = torch.randn(3, 8, 48), torch.randn(6, 48)
    expected = heads.clone()
    expected[:, :6] = functional.rms_norm(heads[:, :6], (48,), None, EPS) * weight
    compiled.norm_heads(heads.numpy(), weight.numpy(), np.float32(EPS))
    torch.testing.assert_close(heads, expected)


class Layer:
    """Pages of some layers full of random numbers, and tokens that attend over them."""

    def __init__(self, contexts: list[int], page_tokens: int, shape: tuple[int, int, int]) -> None:
        self.n_heads, self.n_kv, self.size = shape
        self.contexts, self.page_tokens = contexts, page_tokens
        columns = -(-max(contexts) // page_tokens)
        n_pages = columns * len(contexts)
        # What no row owns is NaN: reading it, or past a row's end, shows.
        self.kv = torch.full((n_pages + 1, 3, 2, self.n_kv, page_tokens, self.size), torch.nan)
        self.table = torch.randperm(n_pages).view(len(contexts), columns)
        self.keys = [torch.randn(2, n, self.n_kv, self.size) for n in contexts]
        for row, own in enumerate(self.keys):
            for at in range(contexts[row]):
                page = self.table[row, at // page_tokens]
                self.kv[page, 1, :, :, at % page_tokens] = own[:, at]
        self.heads = torch.randn(len(contexts), self.n_heads + 2 * self.n_kv, self.size)
        self.tokens = np.array([(row, n - 1) for row, n in enumerate(contexts)], dtype=np.int64)

    def attention(self, window: int | None) -> CompiledAttention:
        """Over the pages, for three layers with this window."""
        model: Any = type("Shapes", (), {})()
        model.n_heads = self.n_heads
        model.spec = type("Spec", (), {"head_dim": self.size, "windows": (window,) * 3})()
        layout = PageLayout(3, self.n_kv, self.page_tokens)
        return CompiledAttention(self.kv.view(-1).numpy(), model, layout)

    def attend(self, window: int | None) -> torch.Tensor:
        """What the compiled function computes [R, Hq * D]."""
        found = torch.full((len(self.contexts), self.n_heads * self.size), torch.nan)
        self.attention(window).attend(1, self.heads.numpy(), self.tokens, self.table.numpy(), found.numpy())
        return found

    def expected(self, window: int | None) -> torch.Tensor:
        """The same in float64."""
        rows = []
        for row, own in enumerate(self.keys):
            seen = own if window is None else own[:, -window:]
            keys, values = seen.double().repeat_interleave(self.n_heads // self.n_kv, dim=2)
            query = self.heads[row, : self.n_heads].double()
            shares = (torch.einsum("hd,nhd->hn", query, keys) / self.size**0.5).softmax(-1)
            rows.append(torch.einsum("hn,nhd->hd", shares, values).flatten())
        return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 1, 21, 150])
@pytest.mark.parametrize("page_tokens", [1, 4, 16, 24, 160])
@pytest.mark.parametrize("shape", [(1, 1, LANES), (4, 2, 64), (7, 1, 80)])
def test_attention_over_pages_equals_a_plain_one(
    window: int | None, page_tokens: int, shape: tuple[int, int, int]
) -> None:
    """Contexts within a page, of whole pages, of several blocks; odd groups, and pages no vector fits."""
    layer = Layer([1, 3, 16, 17, 128, 129, 300], page_tokens, shape)
    torch.testing.assert_close(layer.attend(window).double(), layer.expected(window), rtol=1e-5, atol=1e-5)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    """The best key may come last, and be a thousand above the rest."""
    layer = Layer([200, 140], 16, (2, 1, LANES))
    layer.heads *= 40
    found = layer.attend(None)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), layer.expected(None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("contexts", [[700] * 9, [900, 1100]])
def test_threads_share_the_tokens_or_the_heads(contexts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens are split among threads, few by their heads; the result is that of one."""
    layer = Layer(contexts, 16, (8, 4, 64))
    alone = layer.attend(None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("twolane.engine.compiled_attention._THREAD_WORK", 1000)
    attention = layer.attention(None)
    shared = torch.full_like(alone, torch.nan)
    attention.attend(1, layer.heads.numpy(), layer.tokens, layer.table.numpy(), shared.numpy())
    assert attention._threads is not None
    torch.testing.assert_close(shared, alone, rtol=0, atol=0)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 6, 7, 13, 16, 31, 32, 33])
@pytest.mark.parametrize(("n_out", "n_in"), [(64, 1), (192, 48), (320, 257), (65, 32)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_any_number_of_rows_equal_torch(n_rows: int, n_out: int, n_in: int, biased: bool) -> None:
    """Every way that rows split into turns; matrices that are no whole blocks; plain matrices."""
    weight, x = torch.randn(n_out, n_in), torch.randn(n_rows, n_in)
    bias = torch.randn(n_out) if biased else None
    expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for form in [weight, pack(weight)] if can_pack(torch.float32) else [weight]:
        found = Matrix(form, bias).times(x)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(LANES != 16 or not can_pack(torch.float32), reason="needs AVX-512 and oneDNN")
def test_whole_blocks_are_read_directly_unless_they_lie_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of a packed matrix is compared at load, never trusted."""
    packed = pack(torch.randn(128, 32))
    assert Matrix(packed, None).is_direct
    assert not Matrix(pack(torch.randn(65, 32)), None).is_direct
    assert not Matrix(torch.randn(128, 32), None).is_direct
    right = compiled.multiply

    def wrong(x: Any, blocks: int, bias: Any, to: Any) -> None:
        right(x, blocks, bias, to)
        to[:, 0] += 1.0

    monkeypatch.setattr("twolane.engine.few_rows.multiply", wrong)
    assert not Matrix(packed, None).is_direct


def test_float32_models_take_the_compiled_path_and_others_do_not(models: Any) -> None:
    """Compiled functions know float32 alone; a switch leaves all to torch."""
    assert isinstance(models.engine("llama")._on_cpu, CompiledForward)
    assert isinstance(models.engine("llama", compiled=False)._on_cpu, TorchForward)
    config = EngineConfig(models.folder("llama"), device="cpu", dtype="bfloat16", n_pages=32)
    assert isinstance(Engine.load(config)._on_cpu, TorchForward)


def test_an_engine_that_cannot_compile_takes_torch(
    models: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says that it is slower, and why."""
    models.oracle("llama")
    monkeypatch.setitem(sys.modules, "twolane.engine.compiled_forward", None)
    cpu_forward._compiled.cache_clear()
    try:
        engine = Engine.load(EngineConfig(models.folder("llama"), device="cpu", n_pages=32))
    finally:
        cpu_forward._compiled.cache_clear()
    assert isinstance(engine._on_cpu, TorchForward)
    assert "slower path" in caplog.text


def test_the_cache_folder_is_where_it_was_told_and_changes_with_the_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machine code of other sources is never found."""
    monkeypatch.setenv(CACHE_FOLDER_VARIABLE, str(tmp_path))
    before = cache_folder()
    assert before.parent == tmp_path
    monkeypatch.setattr("twolane.engine.compiled_cache._SOURCES", ("compiled.py",))
    assert cache_folder() != before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_folder_to_write_in_functions_are_compiled_all_the_same(tmp_path: Path) -> None:
    """A root that can't be written costs the time to compile, nothing else."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "import numpy as np\n"
        "from twolane.engine.compiled_cache import compiled\n"
        "@compiled('void(f4[::1])')\n"
        "def double(x):\n"
        "    for at in range(x.shape[0]):\n"
        "        x[at] *= np.float32(2)\n"
        "x = np.ones(3, np.float32)\n"
        "double(x)\n"
        "print(x.tolist())\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {CACHE_FOLDER_VARIABLE: str(blocked / "below")},
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert run.stdout.strip() == "[2.0, 2.0, 2.0]"
