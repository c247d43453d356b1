"""Draws on the device with the sampling kernel: one launch for the batch, one transfer back.

The counterpart of `sampler.sample` for CUDA engines. Its draws also depend on (seed, number of generated
tokens)
alone, but by another generator: a CPU and a CUDA engine draw different tokens from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from twolane.engine.logits import change, needs_change
from twolane.engine.sampler import COLDEST, with_logprobs
from twolane.engine.sequence import Sampled, Sequence
from twolane.kernels.sampling import SamplingRows
from twolane.kernels.sampling import sample as sample_kernel

_SEED_BITS = 1 << 64
_LARGEST_SEED = (1 << 63) - 1


def sample_on_device(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
    """Draws one token per row; arguments and result as `sampler.sample`."""
    logits = logits.float()
    for row, sequence in enumerate(sequences):
        if needs_change(sequence):
            change(logits[row], sequence)
    tokens, _ = sample_kernel(logits.contiguous(), _rows(sequences, logits.device))
    return with_logprobs(logits, sequences, tokens.tolist())


def _rows(sequences: Rows[Sequence], device: torch.device) -> SamplingRows:
    """One upload per element type."""
    sampling = [sequence.sampling for sequence in sequences]
    warm = [0.0 if s.greedy else max(s.temperature, COLDEST) for s in sampling]
    floats = torch.tensor(
        [warm, [s.top_p for s in sampling], [s.min_p for s in sampling]], dtype=torch.float32
    ).to(device)
    seeds = [_signed(s.seed) for s in sampling]
    integers = torch.tensor([seeds, [sequence.n_generated for sequence in sequences]]).to(device)
    return SamplingRows(
        temperature=floats[0],
        top_k=torch.tensor([s.top_k for s in sampling], dtype=torch.int32).to(device),
        top_p=floats[1],
        min_p=floats[2],
        seed=integers[0],
        position=integers[1],
    )


def _signed(seed: int) -> int:
    """Any integer's low 64 bits as the signed integer that a tensor holds."""
    low = seed % _SEED_BITS
    return low if low <= _LARGEST_SEED else low - _SEED_BITS
