"""Fitting finds the numbers that made the step times; profile files say what is wrong with them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from twolane.core.errors import ConfigError, InvalidRequest
from twolane.sim.fit import Probe, StepSample, fit_errors, fit_profile, with_service
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import BUILT_IN, ProfileFile, load_profile, parse_profile, profile_by_name

TRUTH = EngineProfile(
    overhead_s=0.002,
    weights_s=64 * 5e-5,
    token_s=5e-5,
    attention_s=3e-8,
    cached_read_s=2e-7,
    decode_read_s=4e-7,
    kv_bytes_per_token=4096,
    capacity_tokens=65536,
    transfer_bytes_per_s=5e9,
    transfer_latency_s=0.001,
    prompt_s=1e-4,
    decode_overhead_s=0.001,
    decode_weights_s=8 * 2e-4,
    decode_token_s=2e-4,
)
SHAPES = [
    *[(1, new, cached, 0, 0) for new in (1, 16, 64, 128, 512, 2048) for cached in (0, 512, 4096)],
    *[(count, new, 0, 0, 0) for count in (2, 8, 32) for new in (16, 128)],
    *[(0, 0, 0, rows, held) for rows in (1, 4, 8, 16, 64) for held in (16, 512, 4096)],
    (1, 256, 0, 16, 512),
]


def _samples(spread: float = 0.0) -> list[StepSample]:
    rng = np.random.default_rng(0)
    samples = [StepSample(*shape, seconds=1.0) for shape in SHAPES]
    return [
        replace(sample, seconds=sample.predicted_s(TRUTH) * float(rng.lognormal(0.0, spread)))
        for sample in samples
    ]


def _fit(samples: list[StepSample]) -> EngineProfile:
    return fit_profile(samples, 4096, 65536, 5e9, 0.001)


def test_exact_times_give_the_numbers_back() -> None:
    """Both knees included."""
    found, wanted = asdict(_fit(_samples())), asdict(TRUTH)
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-12), name


def test_noise_is_averaged_out_and_reported() -> None:
    """With 5 % of noise a prediction is off by little, and the errors say about as much as the noise."""
    samples = _samples(0.05)
    found = _fit(samples)
    for exact in _samples():
        assert exact.predicted_s(found) == pytest.approx(exact.seconds, rel=0.1)
    errors = fit_errors(samples, found)
    assert {kind: numbers["shapes"] for kind, numbers in errors.items()} == {
        "prefill": 24.0,
        "decode": 15.0,
        "mixed": 1.0,
    }
    assert 0.01 < errors["prefill"]["median_error"] < 0.08
    assert errors["prefill"]["median_error"] <= errors["prefill"]["p90_error"]


def test_too_few_times_are_refused() -> None:
    """A fit of everything to nothing would look perfect."""
    with pytest.raises(InvalidRequest, match="too few"):
        _fit(_samples()[:10])


def test_a_step_of_both_kinds_reads_the_weights_once() -> None:
    """It takes longer than its prompts alone, and less than both steps one after the other."""
    prompts = [(64, 0)]
    alone_s, answers_s = TRUTH.prefill_s(prompts), TRUTH.mixed_s([], 8, 4096)
    both_s = TRUTH.mixed_s(prompts, 8, 4096)
    assert alone_s < both_s < alone_s + answers_s
    assert TRUTH.mixed_s([], 8, 4096) == TRUTH.decode_constant_s(8) + 4096 * TRUTH.decode_read_s


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    """By its path, as `twolane simulate --profile` takes it."""
    saved = ProfileFile("a", "m", "d", True, TRUTH, ("note",), {"prefill": {"shapes": 1.0}}, {"cores": 2})
    path = tmp_path / "a.json"
    path.write_bytes(saved.as_json())
    assert load_profile(str(path)) == saved


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_profiles_say_where_their_numbers_come_from(name: str) -> None:
    """They have the same format and are marked as not measured."""
    found = load_profile(name)
    assert found.name == name
    assert not found.measured
    assert found.notes
    assert found.profile == profile_by_name(name)
    assert parse_profile(found.as_json(), name) == found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 9}, "format 1"),
        ({"profile": None}, "no object"),
        ({"profile": {"token_s": 1.0}}, "lacks"),
        ({"profile": {"speed": 1.0}}, "unknown numbers speed"),
    ],
)
def test_a_malformed_file_is_refused(change: dict[str, object], complaint: str) -> None:
    """The message says what is wrong."""
    document = orjson.loads(ProfileFile("a", "m", "d", True, TRUTH).as_json())
    with pytest.raises(ConfigError, match=complaint):
        parse_profile(orjson.dumps(document | change), "a.json")


@pytest.mark.parametrize(("name", "value"), [("token_s", -1.0), ("capacity_tokens", 0), ("weights_s", "1")])
def test_impossible_numbers_are_refused(name: str, value: object) -> None:
    """A negative time would let the simulator's clock run backwards."""
    document = orjson.loads(ProfileFile("a", "m", "d", True, TRUTH).as_json())
    document["profile"][name] = value
    with pytest.raises(ConfigError, match=name):
        parse_profile(orjson.dumps(document), "a.json")


def test_neither_file_nor_name_is_refused() -> None:
    """And text that is no JSON."""
    with pytest.raises(ConfigError, match="built-in ones are h100"):
        load_profile("missing.json")
    with pytest.raises(ConfigError, match="no JSON"):
        parse_profile(b"{", "a.json")


def test_probes_of_an_idle_stack_tell_what_surrounds_the_steps() -> None:
    """Way in and out, loop and hand-over come back from requests that were made with them."""
    wanted = replace(TRUTH, between_steps_s=0.0007, arrival_s=0.002, reply_s=0.002, transfer_latency_s=0.004)
    probes = []
    for number in range(12):
        new, output = 20 + 10 * number, 2 + 3 * number
        first_s = 0.004 + wanted.prefill_s([(new, 0)])
        steps_s = sum(wanted.mixed_s((), 1, new + step) for step in range(1, output))
        probes.append(Probe(new, 0, output, first_s, first_s + 0.004 + steps_s))
    found = with_service(TRUTH, probes)
    for name in ("between_steps_s", "arrival_s", "reply_s", "transfer_latency_s"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=0.02), name
    known = with_service(TRUTH, probes, between_steps_s=0.0005)
    assert known.between_steps_s == 0.0005
    assert known.transfer_latency_s > found.transfer_latency_s
    with pytest.raises(InvalidRequest, match="different lengths"):
        with_service(TRUTH, probes[:1])
