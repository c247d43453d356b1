"""Enums of core to enums of proto and back; "unspecified" is None.

Numbers that this version does not know raise InvalidRequest: the peer is newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from twolane.core.errors import InvalidRequest
from twolane.core.request import FinishReason, Lane, Phase, Role
from twolane.v1 import types_pb2, worker_pb2

Word = TypeVar("Word", bound=Enum)

_ROLES = {
    Role.PREFILL: types_pb2.ROLE_PREFILL,
    Role.DECODE: types_pb2.ROLE_DECODE,
    Role.MIXED: types_pb2.ROLE_MIXED,
}
_LANES = {Lane.SHORT: types_pb2.LANE_SHORT, Lane.LONG: types_pb2.LANE_LONG}
_PHASES = {
    Phase.PREFILL: worker_pb2.PHASE_PREFILL,
    Phase.DECODE: worker_pb2.PHASE_DECODE,
    Phase.BOTH: worker_pb2.PHASE_BOTH,
}
_FINISH_REASONS = {
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: types_pb2.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: types_pb2.FINISH_REASON_ERROR,
}


def role_to_proto(role: Role | None) -> types_pb2.Role.ValueType:
    """None becomes ROLE_UNSPECIFIED."""
    return types_pb2.ROLE_UNSPECIFIED if role is None else _ROLES[role]


def role_from_proto(value: types_pb2.Role.ValueType) -> Role | None:
    """ROLE_UNSPECIFIED becomes None."""
    return _find(_ROLES, value, "role")


def lane_to_proto(lane: Lane | None) -> types_pb2.Lane.ValueType:
    """None becomes LANE_UNSPECIFIED."""
    return types_pb2.LANE_UNSPECIFIED if lane is None else _LANES[lane]


def lane_from_proto(value: types_pb2.Lane.ValueType) -> Lane | None:
    """LANE_UNSPECIFIED becomes None."""
    return _find(_LANES, value, "lane")


def phase_to_proto(phase: Phase) -> worker_pb2.Phase.ValueType:
    """A request always has a phase."""
    return _PHASES[phase]


def phase_from_proto(value: worker_pb2.Phase.ValueType) -> Phase:
    """Raises InvalidRequest for PHASE_UNSPECIFIED: a request always has a phase."""
    phase = _find(_PHASES, value, "phase")
    if phase is None:
        raise InvalidRequest("phase is unset; allowed: prefill, decode, both", param="phase")
    return phase


def finish_reason_to_proto(reason: FinishReason | None) -> types_pb2.FinishReason.ValueType:
    """None (not finished) becomes FINISH_REASON_UNSPECIFIED."""
    return types_pb2.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_REASONS[reason]


def finish_reason_from_proto(value: types_pb2.FinishReason.ValueType) -> FinishReason | None:
    """FINISH_REASON_UNSPECIFIED becomes None (not finished)."""
    return _find(_FINISH_REASONS, value, "finish_reason")


def _find(words: Mapping[Word, int], number: int, param: str) -> Word | None:
    if number == 0:
        return None
    for word, known in words.items():
        if known == number:
            return word
    allowed = ", ".join(f"{known} ({word.value})" for word, known in words.items())
    raise InvalidRequest(f"{param} {number} is unknown; allowed: {allowed}", param=param)
