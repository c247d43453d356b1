"""silu_mul against its reference: odd widths, strided rows, extreme gates, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.silu_mul import silu_mul
from twolane.kernels.silu_mul_reference import silu_mul_reference


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 100), (2, 2049), (5, 512)])
def test_rows_of_any_width_match_the_reference(
    device: torch.device, assert_near: Callable[..., None], dtype: torch.dtype, rows: int, columns: int
) -> None:
    """Widths below, at and just above a block."""
    gate_up = torch.randn(rows, 2 * columns, device=device).to(dtype)
    assert_near(silu_mul(gate_up), silu_mul_reference(gate_up))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_extreme_gates_saturate_without_nan(device: torch.device, assert_near: Callable[..., None]) -> None:
    """exp(-gate) overflows for very negative gates; the product must still be zero."""
    gate_up = torch.tensor([[-200.0, 200.0, 0.0, 3.0, 3.0, 3.0]], device=device)
    assert_near(silu_mul(gate_up), torch.tensor([[-0.0, 600.0, 0.0]], device=device))


def test_strided_rows_and_given_output_are_honoured(
    device: torch.device, assert_near: Callable[..., None]
) -> None:
    """Only the given slice is read, only the given slice is written."""
    wide = torch.randn(3, 50, device=device)
    target = torch.zeros(3, 40, device=device)
    silu_mul(wide[:, 10:30], out=target[:, 5:15])
    assert_near(target[:, 5:15], silu_mul_reference(wide[:, 10:30]))
    assert target[:, :5].abs().sum() == 0
    assert target[:, 15:].abs().sum() == 0


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(2, 7), "must be even"),
        (torch.zeros(2, 8, dtype=torch.int32), "gate_up must be float32"),
        (torch.zeros(8), r"shape \[any, any\]"),
    ],
)
def test_bad_input_is_refused(device: torch.device, gate_up: torch.Tensor, message: str) -> None:
    """Each refusal says what is expected."""
    with pytest.raises(ValueError, match=message):
        silu_mul(gate_up.to(device))
