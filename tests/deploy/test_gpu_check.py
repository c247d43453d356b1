"""The one command for GPU machines: what it says without a device, and how it runs and reports stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy import gpu_check
from deploy.gpu_check import Outcome, Report, Stage, run_all, run_stage
from deploy.gpu_summary import summary
from twolane.kernels.bench.__main__ import all_cases
from twolane.kernels.bench.case import TINY

ROOT = Path(__file__).resolve().parents[2]


class NoSummary(Report):
    """Writes nothing."""

    def __init__(self, report: Report) -> None:
        self.outcomes = report.outcomes

    def write(self, running: str | None = None) -> str:
        """Nothing."""
        return str(running)


def in_s(seconds: float) -> float:
    """So many seconds from now, of time.monotonic."""
    return time.monotonic() + seconds


def python(name: str, code: str, budget_s: float = 60.0) -> Stage:
    """A stage that runs `code` with `result` and `seconds` defined."""
    return Stage(
        name,
        budget_s,
        lambda result, seconds: ["-c", f"result, seconds = {str(result)!r}, {seconds}\n{code}"],
        f"{name}.json",
    )


DEVICE = {"device": "X", "torch": "2", "triton": "3"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Of a run whose stages write into `tmp_path / "work"`."""
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return Report(tmp_path / "out", tmp_path / "work", DEVICE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_and_fails(tmp_path: Path) -> None:
    """Nothing is run or written, and the exit status is 1."""
    out = tmp_path / "out"
    command = [sys.executable, "deploy/gpu_check.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert "no CUDA device here" in done.stderr
    assert not out.exists()


def test_a_failing_stage_does_not_stop_the_others(tmp_path: Path, report: Report) -> None:
    """Outcomes, logs and results of all are in a handful of files."""
    stages = [
        python("first", "raise SystemExit(5)"),
        python("small", "raise SystemExit(3)"),
        python("last", "print('hello'); open(result, 'w').write('{\"rows\": [], \"ceilings\": {}}')"),
    ]
    text = run_all(stages, report, tmp_path / "work", in_s(600.0))
    # Not even a summary that can't be made.
    assert "no summary" in text
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["failed", "skipped", "passed"]
    assert record["stages"][0]["note"] == "exit status 5"
    assert record["results"] == {"last": {"rows": [], "ceilings": {}}}
    assert record["began"]
    assert record["device"] == "X"
    assert "===== last =====\nhello\n" in (tmp_path / "out" / "log.txt").read_text()
    assert len(list((tmp_path / "out").iterdir())) <= 4


def test_a_stage_gets_no_more_than_its_budget_and_what_is_left(tmp_path: Path, report: Report) -> None:
    """A benchmark learns how long it has; one with too little left is not begun."""
    note, work = "open(result, 'w').write(str(seconds))", tmp_path / "work"
    run_all([python("one", note, 90.0), python("two", note, 150.0)], NoSummary(report), work, in_s(100.0))
    assert float((work / "one.json").read_text()) == 90.0
    assert 75.0 <= float((work / "two.json").read_text()) <= 100.0
    run_all([python("none", note)], NoSummary(report), work, in_s(20.0))
    assert [outcome.status for outcome in report.outcomes] == ["passed", "passed", "skipped"]
    assert report.outcomes[2] == Outcome("none", "skipped", note="no time left")


def test_what_a_running_stage_has_written_is_copied_while_it_runs(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends the whole run early keeps it; half a file is left out."""
    monkeypatch.setattr(gpu_check, "_COPY_S", 0.2)
    kept = tmp_path / "out" / "results.json"
    code = f"""
import json, pathlib, time
row = {{"op": "x", "case": "y", "contender": "twolane", "time_us": 1.0, "limit": "bytes", "share": 0.5}}
limits = {{"copy_bytes_per_s": 1e12, "matmul_flops_per_s": 1e14}}
open(result, "w").write(json.dumps({{"rows": [row], "ceilings": limits}}))
kept, ends = pathlib.Path({str(kept)!r}), time.monotonic() + 30
while not (kept.exists() and json.loads(kept.read_text())["results"]):
    assert time.monotonic() < ends
open(result, "w").write('{{"rows": [')
"""
    run_all([python("bench", code)], report, tmp_path / "work", in_s(600.0))
    assert report.outcomes[0].status == "passed"
    assert json.loads(kept.read_text())["results"] == {}


def test_a_stage_that_takes_too_long_is_stopped_and_keeps_its_result(tmp_path: Path) -> None:
    """What it wrote before stays."""
    code = "open(result, 'w').write('{}')\nimport threading; threading.Event().wait(60)"
    outcome = run_stage(python("slow", code), tmp_path, 3.0)
    assert outcome.status == "timed out"
    assert (tmp_path / "slow.json").read_text() == "{}"


def test_a_stage_ends_with_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted by hand, or without room on the disk, it leaves nothing behind on the device."""
    monkeypatch.setattr(gpu_check, "_COPY_S", 0.2)

    def full() -> None:
        raise OSError("no space left on device")

    quick = "import time; time.sleep(1)"
    assert run_stage(python("quick", quick), tmp_path, 20.0, full).status == "passed"

    file = tmp_path / "pid"

    def interrupted() -> None:
        if file.exists():
            raise KeyboardInterrupt

    code = (
        f"import os, pathlib, time; pathlib.Path({str(file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_stage(python("slow", code), tmp_path, 20.0, interrupted)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_pytest_runs_without_the_plugins_of_this_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing tests are counted and named; the configuration knows the markers."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = tmp_path / "test_two.py"
    file.write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_good(): pass\n\ndef test_bad(): assert False\n"
    )
    outcome = run_stage(gpu_check.tests("two", 60.0, str(file)), tmp_path, 60.0)
    assert outcome.status == "failed"
    assert outcome.tests == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0}
    assert [name.rpartition("::")[2] for name in outcome.failed_tests] == ["test_bad"]


def test_tests_that_were_killed_are_counted_from_the_log(tmp_path: Path) -> None:
    """As pytest names them with and without processes of its own; a device that hangs leaves no report."""
    lines = ["tests/a.py::test_one PASSED [ 50%]", "[gw0] [ 60%] FAILED tests/a.py::test_two[x-1] "]
    code = f"print({chr(10).join(lines)!r}, flush=True)\nimport threading; threading.Event().wait(60)"
    stage = Stage("killed", 60.0, lambda result, seconds: ["-c", code], "killed.xml")
    outcome = run_stage(stage, tmp_path, 3.0)
    assert outcome.status == "timed out"
    assert outcome.tests == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0}
    assert outcome.failed_tests == ["tests/a.py::test_two[x-1]"]


def test_every_stage_fits_the_whole_and_names_what_exists() -> None:
    """The first ones, which matter most, are sure to be run; folders and operations are there."""
    names = [stage.name for stage in gpu_check.STAGES]
    assert len(set(names)) == len(names)
    assert sum(stage.budget_s for stage in gpu_check.STAGES[:7]) <= gpu_check.TOTAL_S
    ops = {op for op, _ in all_cases(TINY, torch.device("cpu"), torch.float32)}
    for stage in gpu_check.STAGES:
        command = stage.command(Path("x"), 60.0)
        if "twolane.kernels.bench" in command:
            words = command[command.index("--op") + 1 : command.index("--rounds")]
            assert all(any(word in op for op in ops) for word in words)
            ops = {op for op in ops if not any(word in op for word in words)}
        else:
            assert all((ROOT / word).exists() for word in command if word.startswith("tests/"))
    assert not ops


@pytest.mark.parametrize("folder", ["tests/kernels/ops", "tests/engine/kernel_path"])
def test_the_tests_for_a_device_are_found_by_that_configuration(folder: str) -> None:
    """Collected as on a bare machine, with the interpreter in the place of a device."""
    command = [sys.executable, "-m", "pytest", "-c", "deploy/pytest-gpu.ini", "--rootdir", str(ROOT), "-q"]
    done = subprocess.run(
        [*command, "--collect-only", folder],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests collected" in done.stdout


def test_results_name_no_folder_of_the_machine() -> None:
    """They can be committed."""
    text = f"{ROOT}/tests/x.py {Path.home()}/.cache {sys.prefix}/bin /" + "home/someone/x"
    assert gpu_check.impersonal(text) == "./tests/x.py ~/.cache <python>/bin <folder>/x"


def test_the_summary_shows_what_was_measured() -> None:
    """Kernels with their best peer, first tokens by policy beside the published figure, decode steps."""
    row = {"op": "silu_mul", "case": "8192", "time_us": 10.0, "limit": "bytes"}
    kernels = {
        "ceilings": {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 7e14},
        "rows": [
            row | {"contender": "twolane", "share": 0.9},
            row | {"contender": "torch", "share": 0.4},
            row | {"contender": "compiled", "share": 0.8},
        ],
        "failed": ["rotary: RuntimeError: no"],
    }
    cell = {"prefix_reuse": False, "clients": 16, "published_p50_ms": 90.0, "computed_tok_per_s": 2e4}
    times = {"ttft_p50_ms": 50.0, "ttft_p90_ms": 70.0, "ttft_p99_ms": 120.0}
    nothing = dict.fromkeys(times)
    decode = {"context": 512, "batch": 4, "note": ""}
    shape = {
        "shape": "qwen2.5-32b",
        "dtype": "bfloat16",
        "load_s": 20.0,
        "pool_pages": 100,
        "page_tokens": 16,
        "weight_streaming_ms": 20.5,
        "prefill": [cell | times | {"policy": "fcfs"}, cell | nothing | {"policy": "laps"}],
        "decode": [decode | {"tpot_ms": 25.0, "tpot_p90_ms": 26.0, "floor_ms": None, "tok_per_s": 160.0}],
    }
    done: list[dict[str, Any]] = [
        {"stage": name, "status": "passed", "seconds": 9.0, "note": "", "tests": {}, "failed_tests": []}
        for name in ("bench-bytes", "qwen2.5-32b")
    ]
    record = {**DEVICE, "began": "now", "python": "3", "stages": done}
    text = summary(record | {"results": {"bench-bytes": kernels, "qwen2.5-32b": shape}})
    assert "| silu_mul | 8192 | 10.0 | bytes | 90% | compiled 80% |" in text
    assert "- rotary: RuntimeError: no" in text
    assert "| no | 16 | 50.0 / 70.0 / 120; 20.0k | - | 90.0 |" in text
    assert "| 512 | 4 | 25.0 | 26.0 | - | 160 |  |" in text
