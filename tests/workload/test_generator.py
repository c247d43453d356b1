"""The generated mix: reproducible, of the asked shape, refused when out of range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twolane.core.errors import InvalidRequest
from twolane.workload.generator import MixSettings, generate_mix

BASE = MixSettings(rate_per_s=50.0, duration_s=100.0)


def _draw(settings: MixSettings, seed: int = 0) -> list[tuple[float, int, int]]:
    drawn = generate_mix(settings, np.random.default_rng(seed))
    return [(request.arrival_s, request.uncached_tokens, request.output_tokens) for request in drawn]


def test_equal_seeds_give_equal_requests() -> None:
    """And another seed gives others."""
    assert _draw(BASE) == _draw(BASE)
    assert _draw(BASE) != _draw(BASE, seed=1)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("shape", ["uniform", "lognormal"])
def test_share_and_rate_are_kept(shape: str, share: float) -> None:
    """Short prompts end at 256 tokens, long ones start at 1,024, and the counts fit."""
    drawn = _draw(replace(BASE, short_share=share, short_shape=shape))
    lengths = np.array([tokens for _, tokens, _ in drawn])
    assert np.mean(lengths <= 256) == pytest.approx(share, abs=0.03)
    assert not np.any((lengths > 256) & (lengths < 1024))
    assert len(drawn) == pytest.approx(5000, rel=0.06)
    assert drawn[-1][0] < 100.0


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_gaps_vary_as_asked(cv: float) -> None:
    """The coefficient of variation of the gaps is the setting's."""
    gaps = np.diff([arrival for arrival, _, _ in _draw(replace(BASE, duration_s=1000.0, arrival_cv=cv))])
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_a_scale_shrinks_every_length() -> None:
    """With 1/32 of the lengths nothing exceeds 256 uncached tokens and nothing is empty."""
    drawn = generate_mix(replace(BASE, length_scale=1 / 32), np.random.default_rng(0))
    assert max(request.input_tokens for request in drawn) <= 512
    assert min(request.uncached_tokens for request in drawn) >= 1
    assert min(request.output_tokens for request in drawn) >= 1


def test_only_later_turns_have_history() -> None:
    """One turn means nothing is cached."""
    drawn = generate_mix(replace(BASE, turns_max=1), np.random.default_rng(0))
    assert all(request.cached_tokens == 0 for request in drawn)
    assert any(request.cached_tokens > 4096 for request in generate_mix(BASE, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s"),
        ({"short_share": 1.5}, "short_share"),
        ({"short_shape": "zipf"}, "short_shape"),
        ({"short_low_tokens": 300}, "short_low_tokens"),
        ({"long_low_tokens": 9000}, "long_low_tokens"),
        ({"turns_max": 0}, "turns_max"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, object], name: str) -> None:
    """The error carries the name of the setting."""
    with pytest.raises(InvalidRequest) as caught:
        generate_mix(replace(BASE, **change), np.random.default_rng(0))  # type: ignore[arg-type]
    assert caught.value.param == name
