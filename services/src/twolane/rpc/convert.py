"""Plain values of core to the messages of types.proto and back; both directions are inverse.

Router, workers and broker use it at their edges, so that nothing inside them touches protobuf.
"""

from __future__ import annotations

from dataclasses import fields

from twolane.core.errors import InvalidRequest, TwolaneError, error_from_code
from twolane.core.model import ModelFingerprint
from twolane.core.request import SamplingParams, TokenLogprob, Usage
from twolane.v1 import types_pb2 as pb

_PLAIN = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
)


def sampling_to_proto(params: SamplingParams) -> pb.SamplingParams:
    """Every field filled in; floats are rounded to float32, as both workers then see them."""
    message = pb.SamplingParams(
        stop_token_ids=sorted(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        top_logprobs=params.top_logprobs,
        **{name: getattr(params, name) for name in _PLAIN},
    )
    message.logit_bias.update(params.logit_bias)
    return message


def sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    """The parameters of a Submit.

    Raises:
        InvalidRequest: a field that the router must resolve is unset.
    """
    for name in _PLAIN:
        if not message.HasField(name):  # type: ignore[arg-type]
            raise InvalidRequest(f"sampling.{name} is unset; the router fills in every default", param=name)
    return SamplingParams(
        **{name: getattr(message, name) for name in _PLAIN},
        logit_bias=dict(message.logit_bias),
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
    )


def fingerprint_to_proto(fingerprint: ModelFingerprint) -> pb.ModelFingerprint:
    """The same fields under the same names."""
    return pb.ModelFingerprint(**{f.name: getattr(fingerprint, f.name) for f in fields(fingerprint)})


def fingerprint_from_proto(message: pb.ModelFingerprint) -> ModelFingerprint:
    """The same fields under the same names."""
    return ModelFingerprint(**{f.name: getattr(message, f.name) for f in fields(ModelFingerprint)})


def error_to_proto(error: TwolaneError) -> pb.Error:
    """An error as it travels inside a stream."""
    return pb.Error(
        code=error.code, message=error.message, param=error.param, retry_after_s=error.retry_after_s
    )


def error_from_proto(message: pb.Error) -> TwolaneError:
    """The error that a peer reported; an unknown code becomes Internal."""
    return error_from_code(
        message.code, message.message, param=message.param, retry_after_s=message.retry_after_s
    )


def logprob_to_proto(logprob: TokenLogprob) -> pb.TokenLogprob:
    """One token's log probability with its alternatives."""
    top = [pb.TokenLogprob(token_id=token, logprob=value) for token, value in logprob.top]
    return pb.TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob, top=top)


def logprob_from_proto(message: pb.TokenLogprob) -> TokenLogprob:
    """One token's log probability with its alternatives."""
    top = tuple((item.token_id, item.logprob) for item in message.top)
    return TokenLogprob(message.token_id, message.logprob, top)


def usage_to_proto(usage: Usage) -> pb.Usage:
    """Token counts."""
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def usage_from_proto(message: pb.Usage) -> Usage:
    """Token counts."""
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)
