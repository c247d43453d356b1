"""sample against its reference: every filter, greedy ties, noise from (seed, position), masked rows,
refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.sampling import SamplingRows, sample
from twolane.kernels.sampling_reference import philox_reference, sample_reference


def _rows(
    n: int,
    device: torch.device,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 7,
) -> SamplingRows:
    return SamplingRows(
        temperature=torch.full((n,), temperature, device=device),
        top_k=torch.full((n,), top_k, dtype=torch.int32, device=device),
        top_p=torch.full((n,), top_p, device=device),
        min_p=torch.full((n,), min_p, device=device),
        seed=torch.full((n,), seed, dtype=torch.int64, device=device),
        position=torch.arange(n, dtype=torch.int64, device=device),
    )


def _logits(n: int, vocab: int, device: torch.device) -> torch.Tensor:
    return torch.randn(n, vocab, device=device) * 3


@pytest.mark.parametrize("vocab", [1, 5, 100, 4097, 9001])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.5])
def test_vocabularies_of_any_size(
    device: torch.device, assert_near: Callable[..., None], vocab: int, temperature: float
) -> None:
    """Below, at and over a block, with and without noise."""
    logits, rows = _logits(4, vocab, device), _rows(4, device, temperature=temperature)
    expected, expected_logprobs = sample_reference(logits, rows)
    tokens, logprobs = sample(logits, rows)
    assert tokens.tolist() == expected.tolist()
    assert_near(logprobs, expected_logprobs, looser=10)


def test_every_dtype_is_sampled_as_float32(
    device: torch.device, assert_near: Callable[..., None], dtype: torch.dtype
) -> None:
    """Rounded logits, exact arithmetic on them."""
    logits = _logits(6, 300, device).to(dtype)
    rows = _rows(6, device, top_k=20, top_p=0.9)
    expected, expected_logprobs = sample_reference(logits, rows)
    tokens, logprobs = sample(logits, rows)
    assert tokens.tolist() == expected.tolist()
    assert_near(logprobs, expected_logprobs, looser=10)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 700},
        {"top_k": 4999},
        {"top_p": 0.05},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"min_p": 0.2},
        {"top_k": 40, "top_p": 0.7},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 1.3},
    ],
    ids=str,
)
def test_filters_keep_what_a_sort_would_keep(device: torch.device, filters: dict[str, float]) -> None:
    """The threshold search agrees with sorting: four rows of noise per filter."""
    logits = _logits(4, 5000, device)
    rows = _rows(4, device, **filters)  # type: ignore[arg-type]
    expected, _ = sample_reference(logits, rows)
    assert sample(logits, rows)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("filters", [{"top_k": 3000}, {"top_p": 0.6}], ids=str)
def test_flat_rows_are_searched_to_the_end(device: torch.device, filters: dict[str, float]) -> None:
    """Almost equal logits give the lane bound little to hold on to; the search must still end, exactly."""
    logits = 1.0 + torch.rand(2, 5000, device=device) * 1e-3
    rows = _rows(2, device, **filters)  # type: ignore[arg-type]
    expected, _ = sample_reference(logits, rows)
    assert sample(logits, rows)[0].tolist() == expected.tolist()


def test_equal_logits_stay_together(device: torch.device) -> None:
    """Top-k of 2 among three equal largest keeps all three, and nothing below."""
    logits = torch.zeros(40, 64, device=device)
    logits[:, [3, 30, 60]] = 5.0
    tokens, _ = sample(logits, _rows(40, device, top_k=2))
    assert set(tokens.tolist()) == {3, 30, 60}


def test_greedy_takes_the_first_of_equal_largest(device: torch.device) -> None:
    """Exact argmax, also across blocks."""
    logits = torch.zeros(2, 9000, device=device)
    logits[0, [8500, 4100, 17 + 4096]] = 2.0
    tokens, _ = sample(logits, _rows(2, device, temperature=0.0))
    assert tokens.tolist() == [4100, 0]


def test_masked_tokens_are_never_drawn(device: torch.device) -> None:
    """-inf excludes, alone or with every filter; a row of only -inf has a defined answer."""
    logits = torch.full((3, 300), float("-inf"), device=device)
    logits[0, 77] = -5.0
    logits[1, 100:110] = torch.randn(10, device=device)
    rows = _rows(3, device, top_k=50, top_p=0.99, min_p=0.001)
    tokens, logprobs = sample(logits, rows)
    assert tokens[0] == 77
    assert 100 <= int(tokens[1]) < 110
    assert (int(tokens[2]), float(logprobs[2])) == (0, float("-inf"))
    assert float(logprobs[0]) == 0.0


def test_noise_depends_on_seed_and_position_only(device: torch.device) -> None:
    """The same row draws the same token wherever it stands in a batch, and another one at another
    position."""
    logits = torch.zeros(1, 1000, device=device).expand(40, 1000).contiguous()
    rows = _rows(40, device)
    whole = sample(logits, rows)[0].tolist()
    last = SamplingRows(*(getattr(rows, name)[39:].contiguous() for name in rows.__dataclass_fields__))
    assert sample(logits[39:], last)[0].tolist() == whole[39:]
    assert len(set(whole)) > 30
    assert sample(logits, _rows(40, device, seed=8))[0].tolist() != whole


def test_draws_follow_the_distribution(device: torch.device) -> None:
    """Four tokens of known probability over 160 positions: chi-square below the 0.1 % point of three
    degrees."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().to(device).expand(160, 4).contiguous()
    tokens, _ = sample(logits, _rows(160, device, seed=2**40 + 3))
    counts = torch.bincount(tokens.cpu(), minlength=4).double()
    expected = probabilities.double() * 160
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3


def test_philox_matches_the_published_vectors() -> None:
    """Known answers of Philox4x32-10 from the authors' Random123 distribution."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert [hex(int(word)) for word in philox_reference(0, (zero, zero, zero, zero))] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_bad_input_is_refused(device: torch.device) -> None:
    """Each parameter is named with its dtype and length."""
    logits, rows = _logits(2, 10, device), _rows(3, device)
    with pytest.raises(ValueError, match=r"temperature must have shape \[2\]"):
        sample(logits, rows)
    with pytest.raises(ValueError, match="no columns"):
        sample(logits[:, :0], _rows(2, device))
    with pytest.raises(ValueError, match="logits must be float32"):
        sample(logits.double(), _rows(2, device))
