"""Compares runs at equal goals: ratios of GPU-hours, what would have been possible, swings, a table.

scaling_command.py writes it. A rival counts where it kept as many requests within their targets as was
asked, or as the planner did where that is fewer: what exceeds the goal earns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from twolane.sim.scaling_compare import PLANNER, POSSIBLE, RIVALS, WORK, Row
from twolane.workload.latency import bootstrap_interval

# Attainments that differ by less are called equal.
EQUAL = 0.0005

Key = tuple[str, str, int]


def summary(rows: Sequence[Row], goal: float) -> Row:
    """All that is said about one goal."""
    cases = _cases(rows)
    ours = {key: _ours(group, goal) for key, group in cases.items()}
    possible = {key: _first(group, POSSIBLE, str(goal)) for key, group in cases.items()}
    work = {key: row for key, group in cases.items() if (row := _first(group, WORK, "")) is not None}
    known = {key: row for key, row in possible.items() if row is not None}
    found: Row = {
        "goal": goal,
        "planner": _means(list(ours.values())),
        "runs": len(cases),
        "runs_at_goal": sum(row["attainment"] >= goal - EQUAL for row in ours.values()),
        "clairvoyant": _means(list(known.values())) if known else None,
        "planner_to_clairvoyant": _ratios({key: (ours[key], row) for key, row in known.items()}),
        "work_to_clairvoyant": _ratios({key: (work[key], row) for key, row in known.items() if key in work}),
    }
    for family in RIVALS:
        best = {key: matched(group, family, _asked(ours[key], goal)) for key, group in cases.items()}
        met = {key: row for key, row in best.items() if row is not None}
        found[family] = {
            "never_reached": len(cases) - len(met),
            "hindsight": _ratios({key: (ours[key], row) for key, row in met.items()}),
            "possible": _ratios({key: (known[key], row) for key, row in met.items() if key in known}),
            "one_setting": _one_setting(cases, ours, family, goal),
        }
    return found


def matched(rows: Iterable[Row], family: str, attainment: float) -> Row | None:
    """The cheapest run of a family that keeps as many targets; None when none does."""
    good = [row for row in rows if row["family"] == family and row["attainment"] >= attainment - EQUAL]
    return min(good, key=lambda row: row["gpu_hours"], default=None)


def _cases(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    cases: dict[Key, list[Row]] = {}
    for row in rows:
        cases.setdefault((row["trace"], row["clients"], row["seed"]), []).append(row)
    return cases


def _first(rows: Iterable[Row], family: str, setting: str) -> Row | None:
    return next((row for row in rows if row["family"] == family and row["setting"] == setting), None)


def _ours(rows: Sequence[Row], goal: float) -> Row:
    found = _first(rows, PLANNER, str(goal))
    assert found is not None, "the planner was not played at this goal"
    return found


def _asked(ours: Row, goal: float) -> float:
    return min(goal, float(ours["attainment"]))


def _ratios(pairs: Mapping[Key, tuple[Row, Row]]) -> Row:
    """GPU-hours of the first over the second: mean with interval, over all runs and by trace."""
    by_load: dict[str, list[float]] = {}
    for (trace, clients, _), (one, other) in pairs.items():
        by_load.setdefault(f"{trace}, {clients}", []).append(one["gpu_hours"] / other["gpu_hours"])
    every = [ratio for ratios in by_load.values() for ratio in ratios]
    return {"all": _interval(every), "by_load": {name: _spread(one) for name, one in by_load.items()}}


def _one_setting(cases: Mapping[Key, list[Row]], ours: Mapping[Key, Row], family: str, goal: float) -> Row:
    """The cheapest setting whose mean attainment over these very runs is what is asked."""
    asked = min(goal, float(np.mean([row["attainment"] for row in ours.values()])))
    settings: dict[str, dict[Key, Row]] = {}
    for key, group in cases.items():
        for row in group:
            if row["family"] == family:
                settings.setdefault(row["setting"], {})[key] = row
    mean = {name: _means(list(group.values())) for name, group in settings.items()}
    good = [name for name in settings if mean[name]["attainment"] >= asked - EQUAL]
    if not good:
        name = max(settings, key=lambda one: mean[one]["attainment"])
        return {"setting": None, "best": name, **mean[name]}
    name = min(good, key=lambda one: mean[one]["gpu_hours"])
    total = float(np.mean([row["gpu_hours"] for row in ours.values()])) / mean[name]["gpu_hours"]
    pairs = {key: (ours[key], row) for key, row in settings[name].items()}
    return {"setting": name, "ratio_of_totals": round(total, 4), "ratios": _ratios(pairs), **mean[name]}


def _means(rows: Sequence[Row]) -> Row:
    names = ("gpu_hours", "attainment", "short", "long", "raises", "lowers", "moves", "swings")
    means: Row = {
        name: round(float(np.mean([row[name] for row in rows])), 4) for name in names if name in rows[0]
    }
    least = min(row["attainment"] for row in rows)
    return {**means, "least_attainment": round(least, 4), "most_swings": max(row["swings"] for row in rows)}


def _interval(values: Sequence[float]) -> list[float]:
    found = bootstrap_interval(values, np.random.default_rng(0))
    return [round(float(x), 4) for x in (found.mean, found.low, found.high)]


def _spread(values: Sequence[float]) -> list[float]:
    """Mean, least and most: an interval of three runs would say little."""
    return [round(float(x), 4) for x in (np.mean(values), min(values), max(values))]


def table(rows: Sequence[Row], goal: float) -> str:
    """The results at one goal as Markdown."""
    found = summary(rows, goal)
    ours = found["planner"]
    lines = [
        f"## Goal {100 * goal:g} %",
        "",
        f"Planner: {ours['gpu_hours']:.2f} GPU-hours a run, {100 * ours['attainment']:.2f} % of requests "
        f"within their targets (least {100 * ours['least_attainment']:.1f} %; {found['runs_at_goal']} of "
        f"{found['runs']} runs at the goal), {ours['swings']:.2f} swings an hour, {ours['moves']:.1f} moves "
        f"of a role. To a clairvoyant's GPU-hours: {_ratio(found['planner_to_clairvoyant']['all'])}; "
        f"the work alone: {_ratio(found['work_to_clairvoyant']['all'])}.",
        "",
        "| rival | compared at | planner's GPU-hours to its | possible | attainment | swings/h | never |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family in RIVALS:
        lines += _rival_lines(family, found[family], found["runs"])
    return "\n".join([*lines, "", *_by_load(found)]) + "\n"


def _rival_lines(family: str, found: Row, runs: int) -> list[str]:
    hindsight, single = found["hindsight"]["all"], found["one_setting"]
    never = f"{found['never_reached']} of {runs}"
    possible = _ratio(found["possible"]["all"])
    lines = [
        f"| {family} | each run's best, in hindsight | {_ratio(hindsight)} | {possible} | equal | | {never} |"
    ]
    kept = f"{100 * single['attainment']:.2f} % | {single['swings']:.1f} | |"
    if single["setting"] is None:
        return [*lines, f"| {family} | one setting for all | none keeps the goal | | at best {kept}"]
    words = f"one setting for all: {single['setting']}"
    return [*lines, f"| {family} | {words} | {single['ratio_of_totals']:.2f} of the sum | | {kept}"]


def _by_load(found: Row) -> list[str]:
    lines = [
        "Mean (least–most) over seeds of GPU-hours, planner to …; in brackets what a clairvoyant reaches:",
        "",
        "| trace, clients | clairvoyant | " + " | ".join(RIVALS) + " |",
        "| --- |" + " --- |" * (1 + len(RIVALS)),
    ]
    ours = found["planner_to_clairvoyant"]["by_load"]
    for name in dict.fromkeys(
        name for family in RIVALS for name in (*ours, *found[family]["hindsight"]["by_load"])
    ):
        cells = [_ratio(ours[name]) if name in ours else ""]
        for family in RIVALS:
            ratio, best = (found[family][kind]["by_load"].get(name) for kind in ("hindsight", "possible"))
            cells.append("never" if ratio is None else _ratio(ratio) + (f" [{best[0]:.2f}]" if best else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def settings_table(rows: Sequence[Row]) -> str:
    """Every setting that was played, summed over all runs."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["family"] != WORK:
            groups.setdefault((row["family"], row["setting"]), []).append(row)
    lines = [
        "## All settings that were played",
        "",
        "| scaler, setting | runs | GPU-hours | attainment, mean | least | swings/h |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (family, setting), group in groups.items():
        mean = _means(group)
        hours, kept = mean["gpu_hours"] * len(group), 100 * mean["attainment"]
        least = 100 * mean["least_attainment"]
        lines.append(
            f"| {family} {setting} | {len(group)} | {hours:.1f} | {kept:.2f} % | {least:.1f} % "
            f"| {mean['swings']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _ratio(interval: Sequence[float]) -> str:
    if math.isnan(interval[0]):
        return "not played"
    return f"{interval[0]:.2f} ({interval[1]:.2f}–{interval[2]:.2f})"
