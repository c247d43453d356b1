"""Fits an engine profile to measured step times, and says how far off it is.

Prefill: T0 + a·ΣL(L+2H) + b·max(K, ΣL) + g·ΣH + p·prompts, decode: T0 + b·max(K, rows) + g·held. K is the
number of tokens whose computing takes as long as reading the weights; for each K the rest is linear.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twolane.core.errors import InvalidRequest
from twolane.policies.least_squares import solve_non_negative
from twolane.sim.profile import EngineProfile

# Tokens at which the weights may cease to decide; 0: they never do.
KNEES = (0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
LEAST_SAMPLES = 8
MEGA = 1e6


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


def fit_errors(samples: Sequence[StepSample], profile: EngineProfile) -> dict[str, dict[str, float]]:
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
