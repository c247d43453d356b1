"""The two commands: files that stand alone, numbers that JSON knows, errors that help."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest

from twolane.sim.command import compare_main, simulate_main

TRACE = "arrival_s,input_tokens,output_tokens\n" + "".join(
    f"{index * 0.05:.2f},{3000 if index % 5 == 0 else 60},5\n" for index in range(120)
)


def test_a_simulation_leaves_json_and_a_page_that_loads_nothing(tmp_path: Path) -> None:
    """Six figures inline, no script and no address but those of XML name spaces."""
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE, encoding="utf-8")
    lines: list[str] = []
    arguments = ["--trace", str(trace), "--prefill-workers", "2", "--fail", "1:0:1", "--out", str(tmp_path)]
    assert simulate_main(arguments, lines.append) == 0
    document = orjson.loads((tmp_path / "simulation.json").read_bytes())
    assert document["summary"]["all"]["count"] == 120
    assert document["summary"]["short"]["count"] == 96
    assert document["settings"]["failures"][0]["at_s"] == 1.0
    assert orjson.loads(lines[-1]) == document
    page = (tmp_path / "simulation.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "<script" not in page
    addresses = set(re.findall(r"https?://[^\"' )<]+", page))
    assert {address.split("/")[2] for address in addresses} == {"www.w3.org"}
    assert not re.search(r"(href|src)=\"http", page.replace('xlink:href="#', ""))


def test_a_mix_repeats_for_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a trace one is generated; the result is printed."""
    found = []
    for _ in "ab":
        assert simulate_main(["--rate", "10", "--duration-s", "5", "--seed", "4"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert orjson.loads(found[0])["summary"]["all"]["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--trace", "missing.csv"], "no trace missing.csv"),
        (["--rate", "0"], "rate_per_s"),
        (["--fail", "soon"], "SECONDS:WORKER:SECONDS"),
        (["--prefill-workers", "0"], "prefill"),
        (["--lane-groups"], "two prefill workers"),
        (["--limit", "0"], "no request"),
    ],
)
def test_bad_input_ends_with_status_2_and_a_reason(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stack trace."""
    assert simulate_main(arguments) == 2
    assert complaint in capsys.readouterr().err


def test_a_comparison_leaves_paired_intervals_and_a_figure(tmp_path: Path) -> None:
    """One row per policy, with a ratio to fcfs whose interval holds its mean."""
    lines: list[str] = []
    arguments = [
        "--workloads",
        "mix80",
        "--policies",
        "laps",
        "--loads",
        "0.9",
        "--seeds",
        "2",
        "--requests",
        "250",
        "--out",
    ]
    assert compare_main([*arguments, str(tmp_path)], lines.append) == 0
    rows = orjson.loads((tmp_path / "comparison.json").read_bytes())
    assert [row["policy"] for row in rows] == ["fcfs", "laps"]
    mean, low, high = rows[1]["short_ttft_p90_s_ratio"]
    assert low <= mean <= high
    assert mean < 1.0
    assert rows[0]["goodput_per_s_ratio"] == [1.0, 1.0, 1.0]
    assert (tmp_path / "mix80.svg").read_text(encoding="utf-8").startswith("<svg")
    assert len(lines) == 3


def test_the_ablation_adds_one_part_after_the_other(tmp_path: Path) -> None:
    """Its variants all run."""
    lines: list[str] = []
    arguments = [
        "--ablation",
        "--workloads",
        "mix80",
        "--loads",
        "0.8",
        "--seeds",
        "1",
        "--requests",
        "150",
        "--out",
    ]
    assert compare_main([*arguments, str(tmp_path)], lines.append) == 0
    rows = orjson.loads((tmp_path / "comparison.json").read_bytes())
    assert [row["policy"] for row in rows] == [
        "fcfs",
        "queues",
        "+window",
        "+adaptive",
        "+graphs",
        "+roles",
        "+skip",
        "fcfs+graphs",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workloads", "nothing"], "unknown workloads nothing"),
        (["--policies", "clever"], "unknown policies clever"),
        (["--traces", "missing.csv"], "no trace"),
    ],
)
def test_unknown_names_end_with_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message lists what there is."""
    assert compare_main(arguments, lambda line: None) == 2
    assert complaint in capsys.readouterr().err
