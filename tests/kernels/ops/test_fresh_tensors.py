"""The fixture that makes uninitialised memory visible works; without it the other tests would prove less."""

from __future__ import annotations

import torch


def test_fresh_tensors_hold_nan_or_the_largest_integer(device: torch.device) -> None:
    """Also through the functions that the wrappers allocate with."""
    assert torch.empty(5, device=device).isnan().all()
    assert torch.empty_like(torch.zeros(5, dtype=torch.bfloat16, device=device)).isnan().all()
    assert (torch.empty(5, dtype=torch.int32, device=device) == 2**31 - 1).all()
