"""RMS normalisation of rows, optionally after adding a residual stream that is updated in place.

Called by the engine twice per layer (hidden size) and once at the end. The per-head norm of Qwen3 is fused
into ``rotary_page_write`` instead. Reads every input once: the limit is memory bandwidth.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config

_MAX_COLUMNS = 32768


# A form per number of rows would stall serving with compilation.
@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    n_rows,
    stride_x,
    stride_residual,
    stride_out,
    eps,
    N_COLUMNS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK_COLUMNS)
    mask = rows[:, None] < n_rows
    if BLOCK_COLUMNS != N_COLUMNS:
        mask = mask & (columns[None, :] < N_COLUMNS)

    raw = tl.load(x_ptr + rows[:, None] * stride_x + columns[None, :], mask=mask, other=0.0)
    x = raw.to(tl.float32)
    if HAS_RESIDUAL:
        residual_at = residual_ptr + rows[:, None] * stride_residual + columns[None, :]
        total = x + tl.load(residual_at, mask=mask, other=0.0).to(tl.float32)
        stored = total.to(residual_ptr.dtype.element_ty)
        tl.store(residual_at, stored, mask=mask)
        # Normalise what later layers will read, not the unrounded sum: the two must agree.
        x = stored.to(tl.float32)

    scale = tl.rsqrt(tl.sum(x * x, axis=1) / N_COLUMNS + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < N_COLUMNS, other=0.0).to(tl.float32)
    out = x * scale[:, None] * weight[None, :]
    out_at = out_ptr + rows[:, None] * stride_out + columns[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=mask)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``x / rms(x) * weight`` per row; with ``residual``, first ``residual += x`` in place and
    normalise that.

    x, residual, out: [T, N], float32, float16 or bfloat16, last dimension contiguous, N at most 32768;
    weight: [N]. The sum of squares is taken in float32. ``out`` may be ``x``. Raises ValueError on anything
    else.
    """
    _validate(x, weight, residual, out)
    result = torch.empty_like(x) if out is None else out
    if x.shape[0] == 0:
        return result
    n_columns = x.shape[1]

    def make_trial() -> tuning.Trial:
        # Measuring must not change live data: the residual and an aliased output are replaced by copies.
        scratch_residual = None if residual is None else residual.clone()
        scratch_out = torch.empty_like(x)
        return lambda chosen: _launch(chosen, x, weight, eps, scratch_residual, scratch_out)

    shape_class = (n_columns, x.dtype, residual is not None, launch.next_power_of_2(x.shape[0]))
    chosen = tuning.choose("rms_norm", shape_class, candidates(n_columns), make_trial, x.device)
    _launch(chosen, x, weight, eps, residual, result)
    return result


def candidates(n_columns: int) -> list[LaunchConfig]:
    """Launch configurations worth measuring for a row length, the default first."""
    width = launch.next_power_of_2(n_columns)
    if width <= 512:
        rows = 2048 // width
        return [config(4, BLOCK_ROWS=rows), config(2, BLOCK_ROWS=rows // 2), config(8, BLOCK_ROWS=rows * 2)]
    if width <= 4096:
        return [
            config(8, BLOCK_ROWS=1),
            config(4, BLOCK_ROWS=1),
            config(16, BLOCK_ROWS=1),
            config(8, BLOCK_ROWS=2),
        ]
    return [config(16, BLOCK_ROWS=1), config(8, BLOCK_ROWS=1), config(32, BLOCK_ROWS=1)]


def _launch(
    chosen: LaunchConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    n_rows, n_columns = x.shape
    _rms_norm_kernel[(triton.cdiv(n_rows, chosen.blocks["BLOCK_ROWS"]),)](
        x,
        x if residual is None else residual,
        weight,
        out,
        n_rows,
        x.stride(0),
        x.stride(0) if residual is None else residual.stride(0),
        out.stride(0),
        eps,
        N_COLUMNS=n_columns,
        HAS_RESIDUAL=residual is not None,
        BLOCK_COLUMNS=launch.next_power_of_2(n_columns),
        **chosen.options(),
    )


def _validate(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor | None
) -> None:
    launch.require_runnable("rms_norm", x, weight, residual, out)
    launch.require_shape("rms_norm", "x", x, (None, None))
    launch.require_dtype("rms_norm", "x", x, launch.FLOAT_DTYPES)
    launch.require_unit_stride("rms_norm", "x", x)
    if not 0 < x.shape[1] <= _MAX_COLUMNS:
        raise ValueError(f"rms_norm: rows must have 1 to {_MAX_COLUMNS} elements, got {x.shape[1]}")
    launch.require_vector("rms_norm", "weight", weight, x.shape[1], launch.FLOAT_DTYPES)
    for name, tensor in (("residual", residual), ("out", out)):
        if tensor is not None:
            launch.require_shape("rms_norm", name, tensor, x.shape)
            launch.require_dtype("rms_norm", name, tensor, (x.dtype,))
            launch.require_unit_stride("rms_norm", name, tensor)
