"""`twolane bench serve` from its command line to its files, against a scripted server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench_serve.stub_server import Script, serving
from twolane.bench.config import BenchConfig, load_of
from twolane.cli.main import main
from twolane.core.errors import ConfigError

ROWS = "arrival_s,input_tokens,output_tokens\n0.0,30,3\n0.0,500,3\n0.02,40,3\n0.03,90000,3\n"


@pytest.fixture
def script() -> Iterator[Script]:
    """A server that answers with three pieces."""
    with serving(Script()) as script:
        yield script


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four requests, one of them long, one too long."""
    path = tmp_path / "trace.csv"
    path.write_text(ROWS)
    return path


def test_a_replay_prints_and_saves_what_it_measured(
    script: Script, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table, JSON and plot; prompts as long as the trace says; warm-up not counted."""
    out = tmp_path / "out"
    flags = ["--url", script.url, "--trace", str(trace), "--output", str(out), "--warmup", "1"]
    assert main(["bench", "serve", *flags]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["totals"]["requests"] == 3
    assert report["totals"]["left_out_too_long"] == 1
    assert report["classes"]["short"]["count"] == 2
    assert report["classes"]["long"]["count"] == 1
    assert report["settings"]["trace"] == "trace.csv"
    assert str(tmp_path) not in (out / "report.json").read_text()
    assert (out / "plot.png").stat().st_size > 1000
    assert sorted(len(asked["prompt"].split()) for asked in script.asked) == [30, 32, 40, 500]
    assert "in SLO" in capsys.readouterr().out


def test_a_run_without_any_answer_fails_and_is_saved(script: Script, trace: Path, tmp_path: Path) -> None:
    """The report says why."""
    script.status = 429
    flags = ["--url", script.url, "--trace", str(trace), "--output", str(tmp_path), "--warmup", "0"]
    assert main(["bench", "serve", *flags]) == 1
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == {"overloaded": 3}


def test_a_failed_warm_up_stops_before_the_run(
    script: Script, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that refuses everything needn't be loaded."""
    script.status, script.error_code = 400, "invalid_request"
    flags = ["--url", script.url, "--trace", str(trace), "--output", str(tmp_path)]
    assert main(["bench", "serve", *flags]) == 1
    assert "warm-up request" in capsys.readouterr().err
    assert len(script.asked) == 1


def test_the_key_is_in_no_report(
    script: Script, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the environment and goes only into the header."""
    monkeypatch.setenv("TWOLANE_BENCH_API_KEY", "sesame-123")
    main(["bench", "serve", "--url", script.url, "--trace", str(trace), "--output", str(tmp_path)])
    assert script.authorizations[0] == "Bearer sesame-123"
    assert "sesame" not in (tmp_path / "report.json").read_text()


def test_the_generated_load_follows_its_flags_and_its_seed() -> None:
    """The same flags give the same requests; the bound in number holds."""
    flags = ["--rate-per-s", "10", "--duration-s", "20", "--requests", "50", "--turns-max", "1"]
    first, _ = load_of(BenchConfig.from_args(flags))
    again, _ = load_of(BenchConfig.from_args(flags))
    other, _ = load_of(BenchConfig.from_args([*flags, "--seed", "1"]))
    assert first == again != other
    assert len(first) == 50
    assert first[0].arrival_s == 0.0
    assert all(request.cached_tokens == 0 for request in first)


def test_a_scaled_rate_brings_the_requests_closer(trace: Path) -> None:
    """Twice the rate, half the time."""
    load, left_out = load_of(BenchConfig.from_args(["--trace", str(trace), "--rate-scale", "2"]))
    assert [request.arrival_s for request in load] == [0.0, 0.0, 0.01]
    assert left_out == 1


def test_long_answers_are_cut_to_the_bound(trace: Path) -> None:
    """A trace's answers may be longer than a small model's context."""
    load, _ = load_of(BenchConfig.from_args(["--trace", str(trace), "--max-output-tokens", "2"]))
    assert {request.output_tokens for request in load} == {2}


def test_only_prompts_before_the_last_one_sent_count_as_left_out(trace: Path) -> None:
    """What would have come later anyway was not left out for its length."""
    flags = ["--trace", str(trace), "--max-input-tokens", "100"]
    assert load_of(BenchConfig.from_args([*flags, "--requests", "1"]))[1] == 0
    assert load_of(BenchConfig.from_args([*flags, "--requests", "2"]))[1] == 1


def test_a_load_of_which_nothing_is_left_is_refused(trace: Path) -> None:
    """The message names the flags to change."""
    with pytest.raises(ConfigError, match="--max-input-tokens"):
        load_of(BenchConfig.from_args(["--trace", str(trace), "--max-input-tokens", "5"]))


@pytest.mark.parametrize("flags", [["--rate-scale", "0"], ["--requests", "0"], ["--prompts", "songs"]])
def test_malformed_flags_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line that names the flag."""
    assert main(["bench", "serve", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
