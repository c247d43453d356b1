"""Plain-torch definition of ``sample``, noise included bit for bit up to rounding; a usable path on any
device.

Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch

from twolane.kernels.sampling import SamplingRows

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(factor: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32×32-bit product, in int64 arithmetic that can't overflow."""
    low_half, high_half = x & 0xFFFF, x >> 16
    low_product = factor * low_half
    high_product = factor * high_half + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox_reference(seed: int, counters: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Ten rounds of Philox4x32 on four int64 tensors holding 32-bit counters; the key is the seed's two
    halves."""
    c0, c1, c2, c3 = counters
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def gumbel_reference(seed: int, position: int, n_vocab: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise [n_vocab] of token ``position`` of an answer, in float32."""
    quads = torch.arange((n_vocab + 3) // 4, dtype=torch.int64, device=device)
    low, high = (torch.full_like(quads, part) for part in (position & _MASK, (position >> 32) & _MASK))
    bits = torch.stack(philox_reference(seed, (quads, low, high, torch.zeros_like(quads))), dim=1).flatten()
    u = bits[:n_vocab].to(torch.float32) * 2.0**-32 + 2.0**-33
    near = u * (1.0 + u * (0.5 + u / 3.0))
    exponential = torch.where(u < 2.0**-8, near, -torch.log((1.0 - u).clamp_min(2.0**-24)))
    return -exponential.log()


def kept_reference(z: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Mask [V] of what truncation leaves of one row z = (logits - largest) / temperature; ties stay
    together."""
    kept = z > float("-inf")
    if 0 < top_k < z.numel():
        kept &= z >= z.topk(top_k).values[-1]
    if top_p < 1.0:
        ordered = z.masked_fill(~kept, float("-inf")).sort(descending=True).values
        reached = ordered.double().exp().cumsum(0)
        last = int((reached < top_p * reached[-1]).sum().clamp_max(z.numel() - 1))
        kept &= z >= ordered[last]
    if min_p > 0.0:
        kept &= z.exp() >= min_p
    return kept


def sample_reference(logits: torch.Tensor, rows: SamplingRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] int64 and log-probabilities [B] float32 of ``sample``, one row after another."""
    tokens = []
    for index, row in enumerate(logits.float()):
        temperature = float(rows.temperature[index])
        largest = row.max()
        if temperature <= 0.0 or largest == float("-inf"):
            tokens.append(int((row == largest).nonzero()[0]))
            continue
        z = (row - largest) * (1.0 / temperature)
        truncation = int(rows.top_k[index]), float(rows.top_p[index]), float(rows.min_p[index])
        kept = kept_reference(z, *truncation)
        noise = gumbel_reference(int(rows.seed[index]), int(rows.position[index]), row.numel(), row.device)
        tokens.append(int((z + noise).masked_fill(~kept, float("-inf")).argmax()))
    chosen = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
    logprobs = logits.float().log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
    return chosen, torch.where(logits.float().amax(dim=-1) == float("-inf"), float("-inf"), logprobs)
