"""Fits an engine profile to measured step times, and says how far off it is.

Prefill: T0 + a·ΣL(L+2H) + b·max(K, ΣL) + g·ΣH + p·prompts, decode: T0 + b·max(K, rows) + g·held. K is the
number of tokens whose computing takes as long as reading the weights; for each K the rest is linear.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twolane.core.errors import InvalidRequest
from twolane.policies.least_squares import solve_non_negative
from twolane.sim.logged_steps import spread_of
from twolane.sim.profile import EngineProfile

# Tokens at which the weights may cease to decide; 0: they never do.
KNEES = (0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
LEAST_SAMPLES = 8
MEGA = 1e6
# Share of the median way from client to worker and back below which no probe's counts.
LEAST_WAY = 0.1


@dataclass(frozen=True, slots=True)
class StepSample:
    """A measured step: `prompts` of `new` tokens behind `cached` ones, `rows` answers of `held` each."""

    prompts: int
    new: int
    cached: int
    rows: int
    held: int
    seconds: float

    @property
    def kind(self) -> str:
        """prefill, decode or mixed."""
        if not self.rows:
            return "prefill"
        return "mixed" if self.prompts else "decode"

    def predicted_s(self, profile: EngineProfile) -> float:
        """What a profile says."""
        work = [(self.new, self.cached)] * self.prompts
        return profile.mixed_s(work, self.rows, self.rows * self.held)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Coefficients of the features after K, K itself, and the mean squared relative error."""

    coefficients: tuple[float, ...]
    knee: int
    error: float


_Features = Callable[[StepSample, int], tuple[float, ...]]


def fit_profile(
    samples: Sequence[StepSample],
    kv_bytes_per_token: int,
    capacity_tokens: int,
    transfer_bytes_per_s: float,
    transfer_latency_s: float,
) -> EngineProfile:
    """The profile that fits prefill and decode samples best, relative errors counted.

    Raises:
        InvalidRequest: too few samples of either kind.
    """
    prefill = _fit([sample for sample in samples if sample.kind == "prefill"], _prefill_features)
    decode = _fit([sample for sample in samples if sample.kind == "decode"], _decode_features)
    constant, token, attention, cached, prompt = prefill.coefficients
    decode_constant, row, held = decode.coefficients
    return EngineProfile(
        overhead_s=constant,
        weights_s=token * prefill.knee,
        token_s=token,
        attention_s=attention / MEGA,
        cached_read_s=cached,
        decode_read_s=held,
        kv_bytes_per_token=kv_bytes_per_token,
        capacity_tokens=capacity_tokens,
        transfer_bytes_per_s=transfer_bytes_per_s,
        transfer_latency_s=transfer_latency_s,
        prompt_s=prompt,
        decode_overhead_s=decode_constant,
        decode_weights_s=row * decode.knee,
        decode_token_s=row,
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """One request on an idle stack, as its client saw it: seconds to the first token, and to the last."""

    new: int
    cached: int
    output_tokens: int
    first_s: float
    last_s: float


def with_service(
    profile: EngineProfile, probes: Sequence[Probe], between_steps_s: float | None = None
) -> EngineProfile:
    """The profile with what router, RPC and the workers' loops add to the engine's steps.

    What a first token takes beyond its prefill step is the way in and out; of the rest of an answer the part
    that grows with its length belongs to the loop between steps, unless that is known, and the part that does
    not to the hand-over.

    Raises:
        InvalidRequest: too few answers of different lengths.
    """
    longer = [probe for probe in probes if probe.output_tokens > 1]
    counts = [probe.output_tokens - 1 for probe in longer]
    if len(longer) < LEAST_SAMPLES or min(counts) == max(counts):
        raise InvalidRequest(f"a probe takes {LEAST_SAMPLES} answers of different lengths")
    extra = []
    for probe, steps in zip(longer, counts, strict=True):
        held = probe.new + probe.cached + (steps + 1) // 2
        extra.append(probe.last_s - probe.first_s - steps * profile.mixed_s((), 1, held))
    slope = _median_slope(counts, extra) if between_steps_s is None else between_steps_s
    hand_over_s = statistics.median(e - slope * count for e, count in zip(extra, counts, strict=True))
    found = replace(profile, between_steps_s=max(0.0, slope), transfer_latency_s=max(0.0, hand_over_s))
    way_s = statistics.median(
        probe.first_s - found.prefill_s(((probe.new, probe.cached),)) for probe in probes
    )
    found = replace(found, arrival_s=max(0.0, way_s / 2), reply_s=max(0.0, way_s / 2))
    if way_s <= 0.0:
        return found
    ways = [probe.first_s - found.prefill_s(((probe.new, probe.cached),)) for probe in probes]
    # A way below nothing is a step faster than the profile's.
    return replace(found, way_spread=spread_of([max(way, LEAST_WAY * way_s) for way in ways]))


def _median_slope(xs: Sequence[int], ys: Sequence[float]) -> float:
    """The median slope over all pairs of points: a few disturbed ones do no harm (Theil and Sen)."""
    points = list(zip(xs, ys, strict=True))
    slopes = [(y - b) / (x - a) for i, (x, y) in enumerate(points) for a, b in points[:i] if x != a]
    return statistics.median(slopes)


class Timed(Protocol):
    """A step whose time is known."""

    @property
    def seconds(self) -> float:
        """What it took."""

    @property
    def kind(self) -> str:
        """prefill, decode or mixed."""

    def predicted_s(self, profile: EngineProfile) -> float:
        """What a profile says."""


def fit_errors(samples: Sequence[Timed], profile: EngineProfile) -> dict[str, dict[str, float]]:
    """Per kind of step: how many, and the median and the largest decile of the relative error."""
    found = {}
    for kind in ("prefill", "decode", "mixed"):
        errors = sorted(
            abs(sample.predicted_s(profile) / sample.seconds - 1.0)
            for sample in samples
            if sample.kind == kind
        )
        if errors:
            found[kind] = {
                "shapes": float(len(errors)),
                "median_error": statistics.median(errors),
                "p90_error": errors[min(len(errors) - 1, int(0.9 * len(errors)))],
                "worst_error": errors[-1],
            }
    return found


def _prefill_features(sample: StepSample, knee: int) -> tuple[float, ...]:
    new, cached, prompts = sample.new, sample.cached, sample.prompts
    pairs = prompts * new * (new + 2 * cached) / MEGA
    return (1.0, float(max(knee, prompts * new)), pairs, float(prompts * cached), float(prompts))


def _decode_features(sample: StepSample, knee: int) -> tuple[float, ...]:
    return (1.0, float(max(knee, sample.rows)), float(sample.rows * sample.held))


def _fit(samples: Sequence[StepSample], features: _Features) -> Fitted:
    if len(samples) < LEAST_SAMPLES:
        raise InvalidRequest(f"{len(samples)} step times are too few for a fit; it takes {LEAST_SAMPLES}")
    return min((_fit_at(samples, features, knee) for knee in KNEES), key=lambda fitted: fitted.error)


def _fit_at(samples: Sequence[StepSample], features: _Features, knee: int) -> Fitted:
    """Weighted by 1/seconds², so that errors count in proportion."""
    rows = [features(sample, knee) for sample in samples]
    size = len(rows[0])
    weights = [1.0 / (sample.seconds * sample.seconds) for sample in samples]
    gram = [
        [sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(size)]
        for i in range(size)
    ]
    moment = [
        sum(w * row[i] * sample.seconds for w, row, sample in zip(weights, rows, samples, strict=True))
        for i in range(size)
    ]
    found = solve_non_negative(gram, moment)
    error = sum(
        (sum(c * x for c, x in zip(found, row, strict=True)) / sample.seconds - 1.0) ** 2
        for row, sample in zip(rows, samples, strict=True)
    )
    return Fitted(found, knee, error / len(samples))
