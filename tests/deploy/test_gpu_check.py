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
from deploy.gpu_check import Outcome, Stage, run_all, run_stage
from deploy.gpu_summary import summary

ROOT = Path(__file__).resolve().parents[2]


def python(name: str, code: str, budget_s: float = 60.0) -> Stage:
    """A stage that runs `code` with `result` and `seconds` defined."""
    return Stage(
        name,
        budget_s,
        lambda result, seconds: ["-c", f"result, seconds = {str(result)!r}, {seconds}\n{code}"],
        f"{name}.json",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so_and_fails(tmp_path: Path) -> None:
    """Nothing is run or written, and the exit status is 1."""
    out = tmp_path / "out"
    command = [sys.executable, "deploy/gpu_check.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert "no CUDA device here" in done.stderr
    assert not out.exists()


def test_a_failing_stage_does_not_stop_the_others(tmp_path: Path) -> None:
    """Each has its outcome, its log and its result."""
    stages = [
        python("first", "raise SystemExit(5)"),
        python("small", "raise SystemExit(3)"),
        python("last", "print('hello'); open(result, 'w').write('{}')"),
    ]
    outcomes = run_all(stages, tmp_path, time.monotonic() + 600)
    assert [outcome.status for outcome in outcomes] == ["failed", "skipped", "passed"]
    assert outcomes[0].note == "exit status 5"
    assert (tmp_path / "last.log").read_text() == "hello\n"
    assert (tmp_path / "last.json").read_text() == "{}"


def test_a_stage_gets_no_more_than_its_budget_and_what_is_left(tmp_path: Path) -> None:
    """A benchmark learns how long it has; one with too little left is not begun."""
    note = "open(result, 'w').write(str(seconds))"
    outcomes = run_all(
        [python("one", note, 90.0), python("two", note, 150.0)], tmp_path, time.monotonic() + 100.0
    )
    assert float((tmp_path / "one.json").read_text()) == 90.0
    assert 75.0 <= float((tmp_path / "two.json").read_text()) <= 100.0
    assert [outcome.status for outcome in outcomes] == ["passed", "passed"]
    assert run_all([python("none", note)], tmp_path, time.monotonic() + 20.0) == [
        Outcome("none", "skipped", note="no time left")
    ]


def test_a_stage_that_takes_too_long_is_stopped_and_keeps_its_result(tmp_path: Path) -> None:
    """What it wrote before stays."""
    code = "open(result, 'w').write('{}')\nimport threading; threading.Event().wait(60)"
    outcome = run_stage(python("slow", code), tmp_path, 3.0)
    assert outcome.status == "timed out"
    assert (tmp_path / "slow.json").read_text() == "{}"


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
    assert not (tmp_path / "two.xml").exists()


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


def test_the_summary_shows_what_was_measured(tmp_path: Path) -> None:
    """Kernels with their best peer, first tokens by policy beside the published figure, decode steps."""
    row = {"op": "silu_mul", "case": "8192", "time_us": 10.0, "limit": "bytes"}
    kernels = {
        "ceilings": {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 7e14},
        "rows": [
            row | {"contender": "twolane", "share": 0.9},
            row | {"contender": "torch", "share": 0.4},
            row | {"contender": "compiled", "share": 0.8},
        ],
    }
    (tmp_path / "kernel-bench.json").write_text(json.dumps(kernels))
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
    (tmp_path / "qwen2.5-32b.json").write_text(json.dumps(shape))
    done: list[dict[str, Any]] = [
        {"stage": name, "status": "passed", "seconds": 9.0, "note": "", "tests": {}, "failed_tests": []}
        for name in ("kernel-bench", "qwen2.5-32b")
    ]
    record = {"device": "X", "began": "now", "torch": "2", "triton": "3", "python": "3", "stages": done}
    text = summary(record, tmp_path)
    assert "| silu_mul | 8192 | 10.0 | bytes | 90% | compiled 80% |" in text
    assert "| no | 16 | 50.0 / 70.0 / 120; 20.0k | - | 90.0 |" in text
    assert "| 512 | 4 | 25.0 | 26.0 | - | 160 |  |" in text
