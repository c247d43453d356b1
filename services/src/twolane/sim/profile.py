"""How long steps take on a simulated GPU and how much it holds: the one place with hardware numbers.

The simulator charges these times as the truth; policies never see them, only measured step times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twolane.core.errors import ConfigError
from twolane.policies.cost import Work


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """A model on a GPU, as a roofline: a step takes its overhead and the slower of memory and compute.

    Attributes:
        overhead_s: launch, sampling and scheduling of any step.
        weights_s: reading all weights once.
        token_s: compute per token, attention aside.
        attention_s: compute of attention per unit of L(L+2H), all layers.
        cached_read_s: reading the KV of one cached token in prefill.
        decode_read_s: reading the KV of one token in decode.
        kv_bytes_per_token: bytes of KV per token over all layers.
        capacity_tokens: tokens whose KV fits beside the weights.
        transfer_bytes_per_s: bandwidth of the link between two workers, per worker and direction.
        transfer_latency_s: seconds from the last byte sent to the row being ready.
    """

    overhead_s: float
    weights_s: float
    token_s: float
    attention_s: float
    cached_read_s: float
    decode_read_s: float
    kv_bytes_per_token: int
    capacity_tokens: int
    transfer_bytes_per_s: float
    transfer_latency_s: float

    def prefill_s(self, work: Iterable[Work]) -> float:
        """Seconds of a prefill batch of (new, cached) tokens."""
        new_tokens = cached_tokens = 0
        pairs = 0
        for new, cached in work:
            new_tokens += new
            cached_tokens += cached
            pairs += new * (new + 2 * cached)
        memory_s = self.weights_s + self.cached_read_s * cached_tokens
        compute_s = self.token_s * new_tokens
        return self.overhead_s + max(memory_s, compute_s) + self.attention_s * pairs

    def decode_constant_s(self, rows: int) -> float:
        """Seconds of a decode step but for its KV reads."""
        return self.overhead_s + max(self.weights_s, self.token_s * rows)

    def transfer_s(self, tokens: int) -> float:
        """Seconds that the KV of these tokens occupies a link."""
        return tokens * self.kv_bytes_per_token / self.transfer_bytes_per_s


# Model: Qwen3-8B in bf16. 36 layers, hidden 4096, 32 query and 8 KV heads of 128, MLP 12288, vocabulary
# 151,936: 6.95e9 weights outside the embeddings and 0.62e9 in the output head, so 15.1 GB are read by a step
# and a prompt token costs 13.9 GFLOP (the head runs on last tokens alone). KV: 147,456 bytes per token.
# Attention: 4·32·128/2·36 FLOP per unit of L(L+2H) = 294,912.
_WEIGHT_BYTES = 15.1e9
_TOKEN_FLOP = 13.9e9
_ATTENTION_FLOP = 294_912.0
_KV_BYTES = 147_456

# Compute, H100 and H200 alike: matmul 769–798 TFLOP/s were measured on an H200; three quarters of it for a
# whole layer stack is assumed. Attention at 450 TFLOP/s is what the kernels aim at for long prompts.
_LINEAR_FLOP_PER_S = 0.75 * 790e12
_ATTENTION_FLOP_PER_S = 450e12
# Copy bandwidth 4.3 TB/s of 4.8 was measured on an H200; the same share of an H100's 3.35 is assumed. A
# decode step streams weights at 82 % of copy bandwidth (gpt-fast on an A100) and reads KV at 65 %.
_WEIGHT_SHARE = 0.82
_KV_SHARE = 0.65
# Assumed: 1.5 ms of launch and scheduling per step; a 200 Gb/s link per worker; 1 ms to land a transfer.
_OVERHEAD_S = 0.0015
_LINK_BYTES_PER_S = 25e9
_LANDING_S = 0.001


def _hopper(copy_bytes_per_s: float, memory_bytes: float) -> EngineProfile:
    """Qwen3-8B on one Hopper GPU; 90 % of the memory is used, 4 GB of it for activations and graphs."""
    return EngineProfile(
        overhead_s=_OVERHEAD_S,
        weights_s=_WEIGHT_BYTES / (_WEIGHT_SHARE * copy_bytes_per_s),
        token_s=_TOKEN_FLOP / _LINEAR_FLOP_PER_S,
        attention_s=_ATTENTION_FLOP / _ATTENTION_FLOP_PER_S,
        cached_read_s=_KV_BYTES / (_KV_SHARE * copy_bytes_per_s),
        decode_read_s=_KV_BYTES / (_KV_SHARE * copy_bytes_per_s),
        kv_bytes_per_token=_KV_BYTES,
        capacity_tokens=int((0.9 * memory_bytes - 16.4e9 - 4e9) / _KV_BYTES),
        transfer_bytes_per_s=_LINK_BYTES_PER_S,
        transfer_latency_s=_LANDING_S,
    )


PROFILES = {
    "h100_qwen3_8b": _hopper(3.0e12, 80e9),
    "h200_qwen3_8b": _hopper(4.3e12, 141e9),
}


def profile_by_name(name: str) -> EngineProfile:
    """The profile of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown engine profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
