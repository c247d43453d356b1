"""Values of core become messages and come back unchanged; words map one to one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.core.errors import ERRORS_BY_CODE, Internal, InvalidRequest, TwolaneError
from twolane.core.model import ModelFingerprint
from twolane.core.request import FinishReason, Lane, Phase, Role, SamplingParams, TokenLogprob, Usage
from twolane.rpc import convert, words
from twolane.v1 import types_pb2 as pb
from twolane.v1 import worker_pb2

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
F32 = st.floats(allow_nan=False, width=32)
TEXT = st.text(max_size=30).filter(lambda text: max(text, default="") < "\ud800" or max(text) > "\udfff")

SAMPLING = st.builds(
    SamplingParams,
    max_tokens=U32,
    temperature=F32,
    top_p=F32,
    top_k=U32,
    min_p=F32,
    seed=U64,
    presence_penalty=F32,
    frequency_penalty=F32,
    repetition_penalty=F32,
    logit_bias=st.dictionaries(U32, F32, max_size=5),
    stop_token_ids=st.frozensets(U32, max_size=5),
    min_tokens=U32,
    ignore_eos=st.booleans(),
    top_logprobs=st.none() | U32,
)
FINGERPRINT = st.builds(
    ModelFingerprint,
    model=TEXT,
    architecture=TEXT,
    vocab_size=U32,
    tokenizer_sha256=TEXT,
    weights_sha256=TEXT,
    n_layers=U32,
    n_kv_heads=U32,
    head_dim=U32,
    page_tokens=U32,
    kv_dtype=TEXT,
    max_model_len=U32,
)
LOGPROB = st.builds(
    TokenLogprob, token_id=U32, logprob=F32, top=st.lists(st.tuples(U32, F32), max_size=5).map(tuple)
)


def over_the_wire(message: Any) -> Any:
    """What the peer parses."""
    return type(message).FromString(message.SerializeToString())


@given(SAMPLING)
def test_sampling_parameters_come_back_unchanged(params: SamplingParams) -> None:
    """Also zero values, which are set and not defaults."""
    assert convert.sampling_from_proto(over_the_wire(convert.sampling_to_proto(params))) == params


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "min_tokens"],
)
def test_an_unresolved_sampling_field_is_refused_by_name(name: str) -> None:
    """The router resolves defaults; a worker never guesses."""
    message = convert.sampling_to_proto(SamplingParams(max_tokens=1))
    message.ClearField(name)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=name) as caught:
        convert.sampling_from_proto(message)
    assert caught.value.param == name


@given(FINGERPRINT)
def test_fingerprints_come_back_unchanged(fingerprint: ModelFingerprint) -> None:
    """Every field of the one is in the other."""
    message = convert.fingerprint_to_proto(fingerprint)
    assert convert.fingerprint_from_proto(over_the_wire(message)) == fingerprint
    assert {field.name for field in pb.ModelFingerprint.DESCRIPTOR.fields} == set(
        ModelFingerprint.__dataclass_fields__
    )


@given(LOGPROB)
def test_logprobs_come_back_unchanged(logprob: TokenLogprob) -> None:
    """With alternatives in order."""
    assert convert.logprob_from_proto(over_the_wire(convert.logprob_to_proto(logprob))) == logprob


@given(st.builds(Usage, U32, U32, U32))
def test_usage_comes_back_unchanged(usage: Usage) -> None:
    """Three counts."""
    assert convert.usage_from_proto(over_the_wire(convert.usage_to_proto(usage))) == usage


@given(st.sampled_from(sorted(ERRORS_BY_CODE)), TEXT, TEXT, F32)
def test_errors_come_back_unchanged(code: str, message: str, param: str, retry_after_s: float) -> None:
    """Class, message, param and retry time."""
    error = ERRORS_BY_CODE[code](message, param=param, retry_after_s=retry_after_s)
    back = convert.error_from_proto(over_the_wire(convert.error_to_proto(error)))
    assert type(back) is type(error)
    assert (back.message, back.param, back.retry_after_s) == (message, param, retry_after_s)


def test_an_error_of_a_newer_peer_is_internal() -> None:
    """With its message kept."""
    back: TwolaneError = convert.error_from_proto(pb.Error(code="from_the_future", message="m"))
    assert type(back) is Internal
    assert back.message == "m"


def test_every_word_has_one_number_and_comes_back() -> None:
    """No value of either side is forgotten; unspecified is None."""
    for role in (None, *Role):
        assert words.role_from_proto(words.role_to_proto(role)) is role
    for lane in (None, *Lane):
        assert words.lane_from_proto(words.lane_to_proto(lane)) is lane
    for phase in Phase:
        assert words.phase_from_proto(words.phase_to_proto(phase)) is phase
    for reason in (None, *FinishReason):
        assert words.finish_reason_from_proto(words.finish_reason_to_proto(reason)) is reason
    assert len(pb.Role.values()) == len(Role) + 1
    assert len(pb.Lane.values()) == len(Lane) + 1
    assert len(worker_pb2.Phase.values()) == len(Phase) + 1
    assert len(pb.FinishReason.values()) == len(FinishReason) + 1


@pytest.mark.parametrize("read", [words.role_from_proto, words.lane_from_proto, words.phase_from_proto])
def test_a_number_of_a_newer_peer_is_refused(read: Any) -> None:
    """The message lists what is allowed."""
    with pytest.raises(InvalidRequest, match=r"99 is unknown; allowed: 1 \("):
        read(99)


def test_a_request_without_a_phase_is_refused() -> None:
    """There is no default for what a worker should do."""
    with pytest.raises(InvalidRequest, match="phase is unset"):
        words.phase_from_proto(worker_pb2.PHASE_UNSPECIFIED)
