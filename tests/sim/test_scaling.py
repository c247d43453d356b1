"""The simulated fleet: pods that start and drain, queues that agree with the fine simulator, whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from twolane.policies.planner import Planner
from twolane.policies.planner_baselines import Hpa
from twolane.policies.planner_view import PlannerView, PoolKind, PoolTarget, ScalePlan
from twolane.sim.cluster import Simulation
from twolane.sim.scaling import FleetRun, FleetSettings
from twolane.sim.scaling_arrivals import Arrivals, arrivals_of
from twolane.sim.scaling_cases import FLEET_PROFILE, SPREADS, Case, Size, case_of
from twolane.sim.scaling_command import scaling_main
from twolane.sim.scaling_compare import hpa_rows
from twolane.sim.scaling_decode import DecodeFlow
from twolane.sim.scaling_fleet import Fleet
from twolane.sim.scaling_outcome import outcome_of
from twolane.sim.scaling_possible import clairvoyant, work_hours
from twolane.sim.scaling_summary import matched, summary
from twolane.sim.settings import SimSettings
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest

PREFILL, DECODE = PoolKind.PREFILL, PoolKind.DECODE


class _Fixed:
    """Always the same counts."""

    def __init__(self, prefill: int, decode: int) -> None:
        self._counts = {PREFILL: prefill, DECODE: decode}

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """As given."""
        return ScalePlan({kind: PoolTarget(count, "") for kind, count in self._counts.items()})


def _arrivals(rate: float, duration_s: float, seed: int = 1) -> Arrivals:
    mix = MixSettings(rate_per_s=rate, duration_s=duration_s, short_share=0.4, turns_max=1)
    requests = generate_mix(mix, np.random.default_rng(seed))
    return arrivals_of(requests, 1.0, FLEET_PROFILE, SimSettings(), np.random.default_rng(seed), 0.0)


def _run(arrivals: Arrivals, prefill: int, decode: int) -> FleetRun:
    run = FleetRun(arrivals, _Fixed(prefill, decode), FleetSettings(FLEET_PROFILE, warmup_s=30.0))
    for kind, count in ((PREFILL, prefill), (DECODE, decode)):
        run.fleet.pools[kind].ready = run.fleet.pools[kind].wanted = count
    return run.run()


def test_a_pod_is_paid_for_from_its_creation_and_serves_later() -> None:
    """Starting and draining pods cost like those that serve."""
    fleet = Fleet({PREFILL: 1}, (60.0, 60.0), np.random.default_rng(0))
    fleet.ask(0.0, PREFILL, 3, 0.0)
    for now_s in range(5, 65, 5):
        fleet.advance(float(now_s), 5.0)
    assert fleet.pools[PREFILL].ready == 3
    assert fleet.pod_s == pytest.approx(3 * 60.0)
    fleet.ask(60.0, PREFILL, 1, 20.0)
    assert fleet.pools[PREFILL].ready == 1
    for now_s in range(65, 105, 5):
        fleet.advance(float(now_s), 5.0)
    assert fleet.pod_s == pytest.approx(3 * 60.0 + 40.0 + 2 * 20.0)


def test_a_pod_that_has_not_started_ends_first() -> None:
    """No worker that serves is drained while another is still loading."""
    fleet = Fleet({PREFILL: 2}, (60.0, 60.0), np.random.default_rng(0))
    fleet.ask(0.0, PREFILL, 4, 0.0)
    fleet.ask(5.0, PREFILL, 2, 30.0)
    assert (fleet.pools[PREFILL].ready, fleet.pools[PREFILL].starting) == (2, [])


@pytest.mark.parametrize("prefill", [3, 2])
def test_it_agrees_with_the_fine_simulator(prefill: int) -> None:
    """A fixed fleet, at ease and at its limit, over the same requests."""
    arrivals = _arrivals(5.0, 330.0)
    coarse = outcome_of(_run(arrivals, prefill, 1))
    settings = SimSettings(prefill_workers=prefill, decode_workers=1, warmup_s=30.0)
    counted = Simulation(settings, arrivals.requests(), FLEET_PROFILE).run().columns
    # The same part of the run as the coarse one counts.
    met = (counted.ttft_s <= counted.ttft_limit_s)[: coarse.requests]
    assert coarse.attainment == pytest.approx(float(met.mean()), abs=0.08)
    fine_p99_s = float(np.quantile(counted.ttft_s[: coarse.requests], 0.99))
    assert coarse.ttft_p99_s == pytest.approx(fine_p99_s, rel=0.35)


def test_every_answer_ends_and_gives_its_pages_back() -> None:
    """After the last request nothing is held."""
    arrivals = _arrivals(4.0, 120.0)
    longer = Arrivals(
        **{name: getattr(arrivals, name) for name in Arrivals.__dataclass_fields__ if name != "duration_s"},
        duration_s=400.0,
    )
    run = _run(longer, 3, 2)
    assert run.decode.rows == 0.0
    assert run.decode.held_tokens == pytest.approx(0.0, abs=1.0)
    assert not np.isnan(run.prefill.first_s).any()
    assert run.decode.ended == pytest.approx(float((longer.output > 1.5).sum()), abs=0.5)


def test_too_small_a_fleet_misses_and_a_large_one_does_not() -> None:
    """More workers never keep fewer targets."""
    arrivals = _arrivals(10.0, 300.0)
    kept = [outcome_of(_run(arrivals, prefill, 3)).attainment for prefill in (2, 4, 10)]
    assert kept == sorted(kept)
    assert kept[0] < 0.5
    assert kept[-1] > 0.99


def test_the_planner_follows_a_load_that_triples() -> None:
    """It adds workers for the high half and keeps most targets over both."""
    low, high = _arrivals(4.0, 900.0), _arrivals(12.0, 900.0, seed=2)
    merged = {
        name: np.concatenate([getattr(low, name), getattr(high, name) + (900.0 if name == "time_s" else 0)])
        for name in ("time_s", "uncached", "prompt", "output", "work_s", "alone_s", "limit_s")
    }
    is_short = np.concatenate([low.is_short, high.is_short])
    arrivals = Arrivals(**merged, is_short=is_short, duration_s=1800.0)
    run = FleetRun(arrivals, Planner(), FleetSettings(FLEET_PROFILE, warmup_s=120.0)).run()
    before = [prefill + decode for at_s, prefill, decode in run.sizes if 600 < at_s < 900]
    after = [prefill + decode for at_s, prefill, decode in run.sizes if at_s > 1500]
    assert min(after) > max(before)
    assert outcome_of(run).attainment > 0.85


def test_nothing_swings_under_a_steady_load() -> None:
    """Random arrivals of one rate: no count turns twice within a quarter of an hour, and the goal is kept."""
    run = FleetRun(_arrivals(8.0, 1800.0), Planner(), FleetSettings(FLEET_PROFILE, warmup_s=300.0)).run()
    found = outcome_of(run)
    assert found.swings == 0.0
    assert found.attainment > 0.99


def test_the_cheapest_run_that_keeps_as_many_targets_is_compared() -> None:
    """A cheaper one that keeps fewer does not count."""
    rows = [
        {"family": "hpa", "setting": "a", "attainment": 0.99, "gpu_hours": 9.0},
        {"family": "hpa", "setting": "b", "attainment": 0.992, "gpu_hours": 7.0},
        {"family": "hpa", "setting": "c", "attainment": 0.95, "gpu_hours": 3.0},
    ]
    best = matched(rows, "hpa", 0.99)
    assert best is not None
    assert best["setting"] == "b"
    assert matched(rows, "hpa", 0.999) is None


@pytest.mark.parametrize("count", [20_000, 200])
def test_held_tokens_do_not_drift(count: int) -> None:
    """After many short answers, or few, the books still say what is held: nothing adds up over time."""
    rng = np.random.default_rng(3)
    time_s = np.sort(rng.uniform(0.0, 200.0, count))
    output = rng.integers(2, 12, count).astype(np.float64)
    full = {"uncached": 50.0, "prompt": 50.0, "work_s": 0.003, "alone_s": 0.02, "limit_s": 0.4}
    columns = {name: np.full(count, value) for name, value in full.items()}
    arrivals = Arrivals(
        time_s=time_s, output=output, is_short=np.ones(count, np.bool_), duration_s=200.0, **columns
    )
    run = _run(arrivals, 2, 2)
    assert 0.0 <= run.decode.held_tokens <= 62.0 * run.decode.rows
    assert outcome_of(run).attainment == 1.0


def _case(rate: float, duration_s: float) -> Case:
    settings = FleetSettings(FLEET_PROFILE, warmup_s=60.0)
    return Case("mix", "independent", 0, _arrivals(rate, duration_s), settings)


def test_short_answers_that_wait_share_a_row_within_a_tick() -> None:
    """A worker of 256 rows ends thousands of answers of a few tokens a second, after a stall as well."""
    count = 20_000
    time_s = np.sort(np.random.default_rng(0).uniform(0.0, 10.0, count))
    requests = [TraceRequest(float(at_s), 50, 4) for at_s in time_s]
    arrivals = arrivals_of(requests, 1.0, FLEET_PROFILE, SimSettings(), np.random.default_rng(0), 0.0)
    decode = DecodeFlow(arrivals, FLEET_PROFILE, max_rows=256, tpot_s=0.1)
    decode.join(np.arange(count), arrivals.time_s)
    for number in range(3):
        decode.tick(number, 0.0)
    assert len(decode.waiting) > 4000
    for number in range(3, 12):
        decode.tick(number, 1.0)
    assert decode.ended == count
    assert not len(decode.waiting)
    assert np.nanmax(decode.last_s()) < 12.0


def test_who_knows_all_arrivals_needs_no_more_than_the_planner() -> None:
    """And nobody needs less than the work itself."""
    case = _case(8.0, 900.0)
    known = clairvoyant(case.arrivals, case.settings, 0.95)
    assert known is not None
    assert known.attainment >= 0.95
    planner = outcome_of(FleetRun(case.arrivals, Planner(), case.settings).run())
    assert work_hours(case.arrivals, case.settings) < known.gpu_hours < planner.gpu_hours


def test_pools_of_an_autoscaler_can_be_put_together() -> None:
    """A pair that was played has the numbers of its run."""
    case = _case(6.0, 400.0)
    rows = {row["setting"]: row for row in hpa_rows(case, quick=True)}
    targets = {PREFILL: 0.4, DECODE: 0.3}
    played = outcome_of(FleetRun(case.arrivals, Hpa(targets), case.settings).run())
    found = rows["prefill 0.4 decode 0.3"]
    assert found["gpu_hours"] == pytest.approx(played.gpu_hours)
    assert found["attainment"] == pytest.approx(played.attainment)
    assert len(rows) == 9


def test_a_short_trace_is_played_over_and_over_and_seeds_take_other_stretches() -> None:
    """Ten minutes last for half an hour; of two hours, each seed takes another half."""
    mix = MixSettings(rate_per_s=0.5, duration_s=600.0, turns_max=1)
    short = generate_mix(mix, np.random.default_rng(0))
    size = Size(hours=0.5, workers=2.0)
    assert case_of("a", short, "independent", 0, size).arrivals.duration_s > 1700.0
    long = generate_mix(replace(mix, duration_s=7200.0, rate_per_s=0.1), np.random.default_rng(0))
    first, second = (case_of("a", long, next(iter(SPREADS)), seed, size).arrivals for seed in (0, 1))
    assert len(first) != len(second)


def test_a_rival_is_compared_at_the_goal_and_not_above() -> None:
    """What the planner keeps beyond the goal is not asked of a rival."""
    names = {"trace": "a", "clients": "independent", "seed": 0}
    more = {"short": 1.0, "long": 1.0, "raises": 0, "lowers": 0, "moves": 0, "swings": 0.0}
    rows = [
        {**names, "family": "planner", "setting": "0.99", "gpu_hours": 6.0, "attainment": 1.0, **more},
        {**names, "family": "hpa", "setting": "a", "gpu_hours": 8.0, "attainment": 0.991, **more},
        {**names, "family": "hpa", "setting": "b", "gpu_hours": 12.0, "attainment": 1.0, **more},
        {**names, "family": "queue-blind", "setting": "c", "gpu_hours": 5.0, "attainment": 0.5, **more},
    ]
    found = summary(rows, 0.99)
    assert found["hpa"]["hindsight"]["all"][0] == pytest.approx(0.75)
    assert found["hpa"]["one_setting"]["setting"] == "a"
    assert found["queue-blind"]["never_reached"] == 1
    assert found["queue-blind"]["one_setting"]["setting"] is None


def test_the_command_writes_runs_and_a_table(tmp_path: Path) -> None:
    """From a trace file to scaling.json and scaling.md."""
    mix = MixSettings(rate_per_s=1.0, duration_s=400.0)
    lines = ["arrival_s,input_tokens,output_tokens"]
    for one in generate_mix(mix, np.random.default_rng(0)):
        lines.append(f"{one.arrival_s},{one.input_tokens},{one.output_tokens}")
    trace = tmp_path / "tiny.csv"
    trace.write_text("\n".join(lines), encoding="utf-8")
    said: list[str] = []
    options = [
        str(trace),
        "--seeds",
        "0",
        "--workers",
        "3",
        "--hours",
        "0.1",
        "--quick",
        "--out",
        str(tmp_path / "out"),
    ]
    assert scaling_main(options, said.append) == 0
    document = orjson.loads((tmp_path / "out" / "scaling.json").read_bytes())
    assert {row["family"] for row in document["runs"]} == {
        "planner",
        "hpa",
        "queue-blind",
        "clairvoyant",
        "work",
    }
    assert "| hpa |" in (tmp_path / "out" / "scaling.md").read_text(encoding="utf-8")
    assert any("GPU-h" in line for line in said)


def test_a_trace_that_is_missing_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and a sentence."""
    assert scaling_main([str(tmp_path / "none.csv")]) == 2
    assert "there is no trace" in capsys.readouterr().err
