"""Draws mixed workloads of short and long prompts, for the simulator, tests and the load generator.

The mix is the one under which length-aware prefill should win (LAPS, arXiv 2601.11589): many short
turns, some of them late turns with a long cached history, and a few long prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twolane.core.errors import InvalidRequest
from twolane.workload.traces import TraceRequest

SHORT_SHAPES = ("uniform", "lognormal")
POSITIVE = (
    "rate_per_s",
    "duration_s",
    "arrival_cv",
    "length_scale",
    "short_median_tokens",
    "output_median_tokens",
    "output_max_tokens",
)


@dataclass(frozen=True, slots=True)
class MixSettings:
    """What the mix looks like; lengths are given before `length_scale` is applied.

    Attributes:
        rate_per_s: mean arrivals per second.
        duration_s: seconds over which requests arrive.
        short_share: share of requests with a short uncached prompt, 0 to 1.
        short_shape: "uniform" over short_low_tokens..short_high_tokens, or "lognormal" around the median
            (cut at short_high_tokens).
        short_low_tokens: least uncached tokens of a short prompt.
        short_high_tokens: most uncached tokens of a short prompt.
        short_median_tokens: median of the lognormal shape.
        short_sigma: sigma of the lognormal shape.
        long_low_tokens: least uncached tokens of a long prompt, drawn uniformly.
        long_high_tokens: most uncached tokens of a long prompt.
        turns_max: a request is turn 1..turns_max of its conversation, uniformly; 1 turns history off.
        history_max_tokens: cached tokens of a last turn at most; earlier turns have proportionally fewer.
        output_median_tokens: median answer length (lognormal).
        output_sigma: sigma of the answer length.
        output_max_tokens: answers are cut here.
        arrival_cv: coefficient of variation of the gaps; 1 is Poisson, 2 to 4 are bursts (gamma).
        length_scale: multiplies every length, so that a tiny model can be driven by the same mix.
    """

    rate_per_s: float
    duration_s: float
    short_share: float = 0.8
    short_shape: str = "lognormal"
    short_low_tokens: int = 16
    short_high_tokens: int = 256
    short_median_tokens: float = 40.0
    short_sigma: float = 1.2
    long_low_tokens: int = 1024
    long_high_tokens: int = 8192
    turns_max: int = 8
    history_max_tokens: int = 8192
    output_median_tokens: float = 120.0
    output_sigma: float = 0.8
    output_max_tokens: int = 1024
    arrival_cv: float = 1.0
    length_scale: float = 1.0


def generate_mix(settings: MixSettings, rng: np.random.Generator) -> list[TraceRequest]:
    """Draws the requests that arrive within the duration, in order of arrival.

    Equal settings and an equally seeded generator give equal requests.

    Raises:
        InvalidRequest: a setting is out of range; the message names it.
    """
    _check(settings)
    arrivals = _arrivals(settings, rng)
    count = len(arrivals)
    prompts = _prompts(settings, rng, count)
    turns = rng.integers(1, settings.turns_max + 1, count)
    reach = (turns - 1) / max(1, settings.turns_max - 1)
    history = _scaled(rng.random(count) * reach * settings.history_max_tokens, settings, least=0)
    outputs: NDArray[np.float64] = rng.lognormal(
        np.log(settings.output_median_tokens), settings.output_sigma, count
    )
    answers = _scaled(np.minimum(outputs, settings.output_max_tokens), settings, least=1)
    return [
        TraceRequest(float(arrival), int(new + cached), int(output), int(cached))
        for arrival, new, cached, output in zip(arrivals, prompts, history, answers, strict=True)
    ]


def _arrivals(settings: MixSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """Times of a renewal process with gamma gaps of the wanted mean and variation, up to the duration."""
    shape = 1.0 / settings.arrival_cv**2
    scale = 1.0 / settings.rate_per_s / shape
    expected = settings.rate_per_s * settings.duration_s
    batch = int(expected + 10 * settings.arrival_cv * np.sqrt(expected + 1)) + 10
    times = np.cumsum(rng.gamma(shape, scale, batch))
    while times[-1] < settings.duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(rng.gamma(shape, scale, batch))])
    return np.asarray(times[times < settings.duration_s], dtype=np.float64)


def _prompts(settings: MixSettings, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Uncached lengths of both classes."""
    is_short = rng.random(count) < settings.short_share
    if settings.short_shape == "uniform":
        drawn = rng.integers(settings.short_low_tokens, settings.short_high_tokens + 1, count)
        short = drawn.astype(np.float64)
    else:
        short = rng.lognormal(np.log(settings.short_median_tokens), settings.short_sigma, count)
        short = np.minimum(short, settings.short_high_tokens)
    long = rng.integers(settings.long_low_tokens, settings.long_high_tokens + 1, count)
    return _scaled(np.where(is_short, short, long), settings, least=1)


def _scaled(lengths: NDArray[np.float64], settings: MixSettings, *, least: int) -> NDArray[np.int64]:
    scaled = np.rint(lengths * settings.length_scale).astype(np.int64)
    return np.asarray(np.maximum(least, scaled), dtype=np.int64)


def _check(settings: MixSettings) -> None:
    for name in POSITIVE:
        value = getattr(settings, name)
        _require(value > 0, name, f"above 0, not {value}")
    share = settings.short_share
    _require(0.0 <= share <= 1.0, "short_share", f"within 0 and 1, not {share}")
    _require(settings.short_shape in SHORT_SHAPES, "short_shape", f"one of {', '.join(SHORT_SHAPES)}")
    low, high = settings.short_low_tokens, settings.short_high_tokens
    _require(1 <= low <= high, "short_low_tokens", f"within 1 and short_high_tokens, not {low}")
    low, high = settings.long_low_tokens, settings.long_high_tokens
    _require(1 <= low <= high, "long_low_tokens", f"within 1 and long_high_tokens, not {low}")
    _require(settings.turns_max >= 1, "turns_max", f"at least 1, not {settings.turns_max}")


def _require(good: bool, name: str, wanted: str) -> None:
    if not good:
        raise InvalidRequest(f"{name} must be {wanted}", param=name)
