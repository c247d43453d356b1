"""A comparison that is stopped goes on; processors change nothing; other settings or code are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from twolane.core.errors import InvalidRequest
from twolane.sim.compare import METRICS, POLICIES, Cell, Group, Plan, default_settings, summary_rows
from twolane.sim.comparison_runs import FILE, RunBook, run_plan
from twolane.sim.comparison_tables import bound_table, met_table, rival_table, target_table
from twolane.sim.workloads import mix_workloads

PLAN = Plan(
    workloads=[each for each in mix_workloads() if each.name in ("mix80", "same_length")],
    variants=[each for each in POLICIES if each.name in ("fcfs", "laps")],
    loads=(0.9, 0.5),
    seeds=range(2),
    requests=60,
    settings=default_settings(),
)


def _ignore(line: str) -> None:
    """Nobody looks at the progress."""


def test_a_stopped_comparison_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """All cells get their first seed before any gets its second; what is there is not played again."""
    whole = RunBook.open(None, PLAN)
    run_plan(PLAN, whole, _ignore)
    first = RunBook.open(tmp_path, PLAN)
    run_plan(replace(PLAN, seeds=range(1)), first, _ignore)
    assert len(first.runs) == 4
    again = RunBook.open(tmp_path, PLAN)
    assert str(again.runs) == str(first.runs)
    lines: list[str] = []
    run_plan(PLAN, again, lines.append)
    assert len(lines) == 4
    ours, theirs = (summary_rows(book.cells(PLAN)) for book in (again, whole))
    assert ours == theirs
    assert [row["seeds"] for row in ours] == [2] * 8


def test_processors_change_nothing(tmp_path: Path) -> None:
    """Two processes give what one gives, whatever comes first."""
    plan = replace(PLAN, loads=(0.9,))
    found = []
    for jobs in (1, 2):
        book = RunBook.open(tmp_path / str(jobs), plan)
        run_plan(plan, book, _ignore, jobs)
        found.append(summary_rows(book.cells(plan)))
    assert found[0] == found[1]


def test_time_that_is_up_begins_nothing() -> None:
    """Not even a capacity is measured."""
    book = RunBook.open(None, PLAN)
    run_plan(PLAN, book, _ignore, limit_s=0.0)
    assert not book.runs
    assert not book.capacities
    assert book.cells(PLAN) == []


def test_runs_of_other_settings_or_other_code_are_refused(tmp_path: Path) -> None:
    """The message says which; other code can be allowed."""
    RunBook.open(tmp_path, PLAN).add(Group("mix80", 0.9, 0), [("fcfs", {"slo_miss": float("nan")})])
    with pytest.raises(InvalidRequest, match="requests 60, not 70"):
        RunBook.open(tmp_path, replace(PLAN, requests=70))
    lines = (tmp_path / FILE).read_bytes().splitlines()
    lines[0] = orjson.dumps({**orjson.loads(lines[0]), "code": "other"})
    (tmp_path / FILE).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InvalidRequest, match="other code"):
        RunBook.open(tmp_path, PLAN)
    assert len(RunBook.open(tmp_path, PLAN, any_code=True).runs) == 1
    (tmp_path / FILE).write_bytes(b"nonsense\n")
    with pytest.raises(InvalidRequest, match="damaged"):
        RunBook.open(tmp_path, PLAN)


def _cell(variant: str, misses: float, long_s: float) -> Cell:
    run = dict.fromkeys(METRICS, 1.0)
    runs = {seed: {**run, "slo_miss": misses, "long_ttft_p99_s": long_s} for seed in range(2)}
    return Cell("mix80", 0.9, variant, True, runs)


def test_missed_targets_are_bold_and_rivals_counted() -> None:
    """Half the misses are met, a long tail of 1.2 is not; better, equal and worse add up."""
    cells = [_cell("fcfs", 0.2, 1.0), _cell("laps", 0.1, 1.2)]
    line = target_table(summary_rows(cells), "laps").splitlines()[-1]
    assert "| 20.0% → 10.0% |" in line
    assert "**1.20 (1.20–1.20)**" in line
    assert "**1.00 (1.00–1.00)** | 20.0%" in line
    counts = rival_table(cells, "laps").splitlines()[-1]
    assert counts == "| fcfs | 1 / 0 / 0 | 0 / 1 / 0 | 0 / 0 / 1 | 0 / 1 / 0 |"


def test_a_cell_counts_only_where_all_targets_are_met() -> None:
    """Fewer misses at a longer tail do not make up for it."""
    cells = [_cell("fcfs", 0.2, 1.0)]
    for policy, misses, long_s in (("laps", 0.1, 1.0), ("sjf", 0.05, 1.5), ("hrrn", 0.15, 1.0)):
        cell = _cell(policy, misses, long_s)
        runs = {seed: {**run, "short_ttft_p90_s": 0.3} for seed, run in cell.runs.items()}
        cells.append(replace(cell, runs=runs))
    lines = met_table(summary_rows(cells)).splitlines()
    assert [line for line in lines if "1 of 1" in line] == ["| laps | 1 of 1 | 1 of 1 |"]
    assert "| sjf | 0 of 1 | 0 of 1 |" in lines
    assert "| hrrn | 0 of 1 | 0 of 1 |" in lines


def test_rivals_with_fewer_misses_are_told_apart_by_their_long_tail() -> None:
    """One within the bound is listed as a loss; one beyond it and one with more misses only count."""
    cells = [_cell("fcfs", 0.2, 1.0), _cell("laps", 0.1, 1.0)]
    cells += [_cell("sjf", 0.05, 1.5), _cell("hrrn", 0.08, 1.05)]
    table = bound_table(summary_rows(cells), "laps")
    assert "| fcfs | 0 | 0 | 0 | 1 | 1 |" in table
    assert "| sjf | 1 | 0 | 1: ×1.50, ×1.50 | 0 | 0 |" in table
    assert "| hrrn | 1 | 1 | 0 | 0 | 0 |" in table
    assert table.splitlines()[-1] == "| hrrn | mix80 | 90% | 8.0% | ×1.05 | 10.0% | ×1.00 |"
    assert table.count("| mix80 |") == 1
