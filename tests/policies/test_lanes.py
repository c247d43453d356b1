"""The boundary of the lanes: by uncached length, fitted with care."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.lanes import boundary_tokens, fitted_boundary, knee_tokens, lane_of
from twolane.policies.least_squares import NormalEquations, StepFit
from twolane.policies.registry import by_name
from twolane.policies.settings import PrefillSettings

SETTINGS = PrefillSettings()


def _trusted(constant_s: float, token_s: float, attention_s: float = 0.0) -> PrefillCost:
    fit = StepFit.start((constant_s, attention_s * 1e6, token_s * 1e3, 0.0))
    seen = replace(NormalEquations.empty(4), samples=500)
    return PrefillCost(replace(fit, light=seen, heavy=seen))


@pytest.mark.parametrize(("tokens", "lane"), [(1, Lane.SHORT), (256, Lane.SHORT), (257, Lane.LONG)])
def test_the_boundary_itself_is_short(tokens: int, lane: Lane) -> None:
    """The default is the authors' 256."""
    assert lane_of(tokens, SETTINGS.short_max_uncached_tokens) is lane


def test_the_knee_is_where_computing_equals_the_constant_part() -> None:
    """Linear: T0/b; with attention it comes earlier and solves the quadratic."""
    assert knee_tokens(_trusted(0.006, 30e-6)) == pytest.approx(200.0)
    curved = _trusted(0.006, 30e-6, attention_s=1e-7)
    knee = knee_tokens(curved)
    assert knee < 200.0
    assert 30e-6 * knee + 1e-7 * knee * knee == pytest.approx(0.006)


def test_a_long_history_moves_the_knee_down() -> None:
    """Attention to cached tokens makes each new token dearer."""
    cost = _trusted(0.006, 30e-6, attention_s=1e-9)
    assert knee_tokens(cost, 8000) < knee_tokens(cost, 0)


def test_the_default_stays_until_the_cost_is_known() -> None:
    """An untrusted model, however clear, moves nothing."""
    assert fitted_boundary(PrefillCost(), 256, SETTINGS) == 256


def test_the_boundary_follows_a_trusted_cost_within_its_bounds() -> None:
    """Somewhat more than the knee is taken, cut to the bounds; a small difference is ignored."""
    assert fitted_boundary(_trusted(0.009, 30e-6), 256, SETTINGS) == 420
    assert fitted_boundary(_trusted(0.0006, 30e-6), 256, SETTINGS) == SETTINGS.boundary_min_tokens
    assert fitted_boundary(_trusted(0.6, 30e-6), 256, SETTINGS) == SETTINGS.boundary_max_tokens
    assert fitted_boundary(_trusted(0.006, 30e-6), 256, SETTINGS) == 256


def test_policies_without_a_fit_keep_the_configured_boundary() -> None:
    """The worker asks one function for all policies."""
    for name in ("fcfs", "laps"):
        assert boundary_tokens(by_name(name, SETTINGS), None, SETTINGS) == 256
