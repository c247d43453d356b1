"""The table, the JSON and the plot say the same, and hide no failure."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from twolane.bench.client import Sample
from twolane.bench.machine import MachineFacts, machine_facts
from twolane.bench.plot import write_plot
from twolane.bench.report import RunResult, as_json, class_table, footnotes
from twolane.workload.latency import Outcome, SloLimits

FACTS = MachineFacts("2026-01-01T00:00:00+00:00", "a CPU", 2, 4.0, (), "Linux", "3.11", {}, "abc")


def _sample(index: int, name: str, due_s: float, first_s: float, outcome: Outcome = Outcome.DONE) -> Sample:
    done = outcome is Outcome.DONE
    return Sample(
        index=index,
        length_class=name,
        due_s=due_s,
        sent_s=due_s,
        first_s=first_s if done else None,
        last_s=first_s + 1.0 if done else None,
        worst_gap_s=0.5,
        prompt_tokens=10,
        output_tokens=21 if done else 0,
        outcome=outcome,
        error_code="" if done else "overloaded",
    )


def _result(*samples: Sample) -> RunResult:
    return RunResult({"seed": 1}, samples, 3, 12.0, False, SloLimits({"short": 0.4, "long": 2.0}, 0.1), FACTS)


GOOD = (_sample(0, "short", 0.0, 0.1), _sample(1, "long", 5.0, 6.0))
SLOW = _sample(2, "short", 8.0, 9.0)
FAILED = _sample(3, "short", 10.0, 0.0, Outcome.REJECTED)


def test_goodput_counts_only_answers_within_the_limits() -> None:
    """Three of four were answered, two in time; over the 10 s in which they arrived."""
    found = as_json(_result(*GOOD, SLOW, FAILED))["classes"]
    assert found["all"]["goodput_per_s"] == pytest.approx(0.2)
    assert found["all"]["slo_attainment"] == pytest.approx(0.5)
    assert found["short"]["slo_attainment"] == pytest.approx(1 / 3)
    assert found["long"]["ttft_p50_s"] == pytest.approx(1.0)
    assert found["long"]["tpot_p50_s"] == pytest.approx(0.05)


def test_failures_are_counted_by_code_everywhere() -> None:
    """In the JSON, in the table and in the lines below it."""
    result = _result(*GOOD, FAILED)
    assert as_json(result)["errors"] == {"overloaded": 1}
    assert "failed: overloaded ×1" in footnotes(result)
    console = Console(file=io.StringIO(), width=200)
    console.print(class_table(result))
    assert isinstance(console.file, io.StringIO)
    all_row = next(line for line in console.file.getvalue().splitlines() if "all" in line)
    assert all_row.split()[:3] == ["all", "3", "1"]


def test_requests_left_out_and_a_busy_machine_are_said() -> None:
    """Both make numbers look better than they are."""
    late = _sample(4, "short", 1.0, 2.0)
    late.sent_s = 1.5
    lines = "\n".join(footnotes(_result(*GOOD, late)))
    assert "3 requests of the load were left out" in lines
    assert "sent 500 ms late" in lines


def test_the_json_is_valid_where_nothing_was_measured() -> None:
    """Not-a-number becomes null, also when every request failed."""
    text = orjson.dumps(as_json(_result(FAILED)))
    found = orjson.loads(text)
    assert found["classes"]["all"]["ttft_p50_s"] is None
    assert found["requests"][0]["outcome"] == "rejected"
    assert b"NaN" not in text


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("samples", [(*GOOD, SLOW, FAILED), (FAILED,), GOOD[:1]], ids=["all", "none", "one"])
def test_a_plot_is_written_for_any_outcome(samples: tuple[Sample, ...], ending: str, tmp_path: Path) -> None:
    """Also with nothing to draw but failures."""
    path = tmp_path / f"plot.{ending}"
    write_plot(_result(*samples), path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_the_facts_of_this_machine_can_be_found() -> None:
    """Every report says where it was made, and no name or folder of the machine."""
    facts = machine_facts()
    assert facts.cores >= 1
    assert facts.memory_gib > 0
    assert facts.packages["numpy"]
    assert "/" not in facts.commit
