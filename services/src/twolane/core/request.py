"""What a request asks for and what comes back, as plain values.

The router builds them from REST or gRPC, workers and the engine act on them, and the rpc package
turns them into the messages of proto/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Role(Enum):
    """What a worker is for."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Lane(Enum):
    """The queue a prompt travels in."""

    SHORT = "short"
    LONG = "long"


class Phase(Enum):
    """The part of a request that one worker does."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class FinishReason(Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, every default resolved.

    Attributes:
        max_tokens: tokens to generate at most, at least 1.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: keep the k most likely; 0 is off.
        min_p: least share of the best token's probability; 0 is off.
        seed: the draw of token i depends on (seed, i) alone, so a replay repeats it.
        presence_penalty: subtracted once from logits of generated tokens.
        frequency_penalty: subtracted per occurrence among generated tokens.
        repetition_penalty: divides positive and multiplies negative logits of seen tokens; 1 is off.
        logit_bias: token id to value added to its logit.
        stop_token_ids: ids that end the answer, the model's own included.
        min_tokens: no stop token is drawn before this many tokens.
        ignore_eos: stop tokens are ordinary tokens.
        top_logprobs: alternatives to report with each token; None reports nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_eos: bool = False
    top_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability (natural) of one token, and of the most likely ones at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; cached_tokens is the part of the prompt found in a prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
