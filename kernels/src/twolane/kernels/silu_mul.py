"""SiLU of the gate times the up projection, read from one packed projection.

Called by the engine once per layer, between the two matrix products of the MLP. The limit is memory
bandwidth.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr,
    out_ptr,
    n_columns,
    stride_in,
    stride_out,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = columns < n_columns
    gate_at = gate_up_ptr + row * stride_in + columns
    gate = tl.load(gate_at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_at + n_columns, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * stride_out + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``silu(gate) * up`` for ``gate_up`` = [gate | up].

    gate_up: [T, 2*N]; out: [T, N]; float32, float16 or bfloat16, last dimension contiguous; computed in
    float32. Raises ValueError on anything else.
    """
    launch.require_runnable("silu_mul", gate_up, out)
    launch.require_shape("silu_mul", "gate_up", gate_up, (None, None))
    launch.require_dtype("silu_mul", "gate_up", gate_up, launch.FLOAT_DTYPES)
    launch.require_unit_stride("silu_mul", "gate_up", gate_up)
    n_rows, width = gate_up.shape
    if width % 2 != 0 or width == 0:
        raise ValueError(
            f"silu_mul: gate_up holds gate and up side by side, so its width must be even, got {width}"
        )
    if out is None:
        out = torch.empty((n_rows, width // 2), dtype=gate_up.dtype, device=gate_up.device)
    launch.require_shape("silu_mul", "out", out, (n_rows, width // 2))
    launch.require_dtype("silu_mul", "out", out, (gate_up.dtype,))
    launch.require_unit_stride("silu_mul", "out", out)
    if n_rows == 0:
        return out
    result = out

    def make_trial() -> tuning.Trial:
        return lambda chosen: _launch(chosen, gate_up, result)

    shape_class = (width // 2, gate_up.dtype, launch.next_power_of_2(n_rows))
    _launch(
        tuning.choose("silu_mul", shape_class, candidates(width // 2), make_trial, gate_up.device),
        gate_up,
        result,
    )
    return result


def candidates(n_columns: int) -> list[LaunchConfig]:
    """Launch configurations worth measuring for a row length, the default first."""
    widest = launch.next_power_of_2(n_columns)
    pairs = [(2048, 4), (1024, 4), (4096, 8), (1024, 2), (2048, 8)]
    return [config(warps, BLOCK_COLUMNS=min(width, widest)) for width, warps in pairs]


def _launch(chosen: LaunchConfig, gate_up: torch.Tensor, out: torch.Tensor) -> None:
    n_rows, n_columns = out.shape
    grid = (n_rows, triton.cdiv(n_columns, chosen.blocks["BLOCK_COLUMNS"]))
    _silu_mul_kernel[grid](gate_up, out, n_columns, gate_up.stride(0), out.stride(0), **chosen.options())
