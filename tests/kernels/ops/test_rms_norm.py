"""rms_norm against its reference: odd row lengths, strided inputs, residual stream, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.rms_norm import rms_norm
from twolane.kernels.rms_norm_reference import rms_norm_reference


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 33), (3, 128), (7, 1000), (2, 4099)])
def test_rows_of_any_length_match_the_reference(
    device: torch.device, assert_near: Callable[..., None], dtype: torch.dtype, rows: int, columns: int
) -> None:
    """One odd shape per block-size class."""
    x = torch.randn(rows, columns, device=device).to(dtype)
    weight = torch.randn(columns, device=device).to(dtype)
    expected, _ = rms_norm_reference(x, weight, 1e-6)
    assert_near(rms_norm(x, weight, 1e-6), expected)


def test_residual_is_updated_in_place_and_normalised(
    device: torch.device, assert_near: Callable[..., None], dtype: torch.dtype
) -> None:
    """The sum is stored in the residual's dtype, and the norm is that of the stored sum (the interpreter
    casts to bf16 by truncation)."""
    x, residual = (torch.randn(6, 257, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(257, device=device)
    expected, expected_residual = rms_norm_reference(x, weight, 1e-5, residual=residual)
    assert expected_residual is not None
    actual = rms_norm(x, weight, 1e-5, residual=residual)
    assert_near(actual, expected)
    assert_near(residual, expected_residual)


def test_rows_may_be_slices_of_wider_rows(device: torch.device, assert_near: Callable[..., None]) -> None:
    """A packed projection is read without a copy, and its neighbours stay as they were."""
    packed = torch.randn(4, 300, device=device)
    x = packed[:, 50:178]
    weight = torch.ones(128, device=device)
    expected, _ = rms_norm_reference(x, weight, 1e-6)
    before = packed.clone()
    rms_norm(x, weight, 1e-6, out=x)
    assert_near(packed[:, 50:178], expected)
    assert torch.equal(packed[:, :50], before[:, :50])
    assert torch.equal(packed[:, 178:], before[:, 178:])


def test_large_values_do_not_overflow_half_precision(
    device: torch.device, assert_near: Callable[..., None]
) -> None:
    """Squares of float16 values above 256 overflow float16: the sum must be taken in float32."""
    x = torch.full((1, 512), 6e4, dtype=torch.float16, device=device)
    actual = rms_norm(x, torch.ones(512, dtype=torch.float16, device=device), 1e-6)
    assert_near(actual, torch.ones_like(actual))


def test_no_rows_give_no_rows(device: torch.device) -> None:
    """An empty batch launches nothing."""
    empty = torch.empty(0, 64, device=device)
    assert rms_norm(empty, torch.ones(64, device=device), 1e-6).shape == (0, 64)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8), "x must be float32"),
        (torch.zeros(2, 8), torch.zeros(9), r"weight must have shape \[8\]"),
        (torch.zeros(8, 2).t(), torch.zeros(8), "must be contiguous"),
        (torch.zeros(1, 40000), torch.zeros(40000), "1 to 32768"),
    ],
)
def test_bad_input_is_refused_by_name(
    device: torch.device, x: torch.Tensor, weight: torch.Tensor, message: str
) -> None:
    """Each refusal names the tensor and what it should have been."""
    with pytest.raises(ValueError, match=message):
        rms_norm(x.to(device), weight.to(device), 1e-6)
