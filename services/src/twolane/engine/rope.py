"""Rotary position embedding: inverse frequencies with linear, llama3 or yarn scaling, and the cos/sin tables.

Called once per load by the model; tables are float32 and rounded to the model's dtype after scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary parameters of config.json (names as there); kind is default, linear, llama3 or yarn.

    Attributes:
        attention_factor: multiplies cos and sin (yarn); 1 elsewhere.
    """

    kind: str
    theta: float
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """Angle per position of each pair of dimensions, float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, head_dim)
    return plain


def rotary_tables(
    rope: RopeSpec, head_dim: int, n_positions: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Tables of every position: cos [n_positions, head_dim] and sin [n_positions, head_dim / 2]."""
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), inverse_frequencies(rope, head_dim))
    cos = torch.cat((angles, angles), dim=-1).cos() * rope.attention_factor
    return cos.to(dtype), (angles.sin() * rope.attention_factor).to(dtype)


def _llama3(rope: RopeSpec, plain: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / plain
    smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * plain / rope.factor + smooth * plain
    stretched = torch.where(
        wavelength > rope.original_max_position / rope.low_freq_factor, plain / rope.factor, between
    )
    return torch.where(wavelength < rope.original_max_position / rope.high_freq_factor, plain, stretched)


def _yarn(rope: RopeSpec, plain: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): a ramp over dimensions between interpolation and none."""

    def dimension_of(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
