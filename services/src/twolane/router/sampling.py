"""Fills in how tokens are drawn: what the request says, else the model's own defaults.

REST and gRPC build a `SamplingRequest`; `resolve_sampling` checks every range, caps the answer at the
context and gives the workers parameters without gaps.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from twolane.core.errors import ContextTooLong, InvalidRequest
from twolane.core.request import SamplingParams
from twolane.router.model_folder import SamplingDefaults

MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
_SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """What a client asked for; None where it said nothing. Fields as in core.request.SamplingParams.

    Attributes:
        names: what the client calls a field, or its prompt, where it is another word than ours.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False
    top_logprobs: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> str:
        """The client's word for a field."""
        return self.names.get(name, name)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows, as its workers announce it.

    Attributes:
        vocab_size: token ids lie below.
        max_model_len: longest prompt plus answer, in tokens.
        eos_token_ids: tokens that end an answer.
        defaults: of the model's generation_config.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults


# Name: least and greatest allowed value.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "top_logprobs": (0, 20),
    "min_tokens": (0, 2**31 - 1),
}


def resolve_sampling(asked: SamplingRequest, limits: ModelLimits, prompt_tokens: int) -> SamplingParams:
    """Every parameter of an answer to a prompt of that length.

    Raises:
        ContextTooLong: the prompt leaves no room for a single token.
        InvalidRequest: a value is out of range; the error names it.
    """
    _check_ranges(asked)
    _check_ids(asked, limits.vocab_size)
    max_tokens = _max_tokens(asked, limits, prompt_tokens)
    defaults = limits.defaults
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_either(asked.temperature, defaults.temperature),
        top_p=_either(asked.top_p, defaults.top_p),
        top_k=int(_either(asked.top_k, defaults.top_k)),
        min_p=_either(asked.min_p, 0.0),
        seed=secrets.randbits(63) if asked.seed is None else asked.seed & _SEED_MASK,
        presence_penalty=_either(asked.presence_penalty, 0.0),
        frequency_penalty=_either(asked.frequency_penalty, 0.0),
        repetition_penalty=_either(asked.repetition_penalty, defaults.repetition_penalty),
        logit_bias=dict(asked.logit_bias),
        stop_token_ids=limits.eos_token_ids | frozenset(asked.stop_token_ids),
        min_tokens=min(asked.min_tokens or 0, max_tokens),
        ignore_eos=asked.ignore_eos,
        top_logprobs=asked.top_logprobs,
    )


def seed_of_choice(seed: int, choice: int) -> int:
    """Choices of one request draw from neighbouring seeds."""
    return (seed + choice) & _SEED_MASK


def _either(value: float | None, default: float) -> float:
    return default if value is None else value


def _max_tokens(asked: SamplingRequest, limits: ModelLimits, prompt_tokens: int) -> int:
    room = limits.max_model_len - prompt_tokens
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens; with one token of answer that exceeds the model's "
            f"context of {limits.max_model_len} tokens",
            param=asked.named("prompt"),
        )
    if asked.max_tokens is None:
        return room
    name = asked.named("max_tokens")
    if asked.max_tokens < 1 or asked.max_tokens > limits.max_model_len:
        raise InvalidRequest(
            f"{name} must be between 1 and {limits.max_model_len} (the model's context), "
            f"not {asked.max_tokens}",
            param=name,
        )
    if asked.min_tokens is not None and asked.min_tokens > asked.max_tokens:
        raise InvalidRequest(
            f"min_tokens must be at most {asked.max_tokens} ({name}), not {asked.min_tokens}",
            param="min_tokens",
        )
    return min(asked.max_tokens, room)


def _check_ranges(asked: SamplingRequest) -> None:
    for name, (least, greatest) in _RANGES.items():
        value = getattr(asked, name)
        # Written so that NaN fails too.
        if value is not None and not least <= value <= greatest:
            theirs = asked.named(name)
            raise InvalidRequest(
                f"{theirs} must be between {least} and {greatest}, not {value}", param=theirs
            )
    if asked.top_p is not None and not 0.0 < asked.top_p <= 1.0:
        raise InvalidRequest(f"top_p must be above 0 and at most 1, not {asked.top_p}", param="top_p")
    penalty = asked.repetition_penalty
    if penalty is not None and not 0.0 < penalty <= 10.0:
        raise InvalidRequest(
            f"repetition_penalty must be above 0 and at most 10, not {penalty}", param="repetition_penalty"
        )


def _check_ids(asked: SamplingRequest, vocab_size: int) -> None:
    for name, ids, most in (
        ("logit_bias", asked.logit_bias, MAX_LOGIT_BIASES),
        ("stop_token_ids", asked.stop_token_ids, MAX_STOP_TOKEN_IDS),
    ):
        if len(ids) > most:
            raise InvalidRequest(f"{name} may have at most {most} entries, not {len(ids)}", param=name)
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"{name} names token {token_id}; the model's ids are 0 to {vocab_size - 1}", param=name
                )
    for token_id, bias in asked.logit_bias.items():
        if not -100.0 <= bias <= 100.0:
            raise InvalidRequest(
                f"logit_bias of token {token_id} must be between -100 and 100, not {bias}", param="logit_bias"
            )
