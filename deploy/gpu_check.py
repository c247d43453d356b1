"""All work that needs a CUDA device, in one command and ten minutes: `make gpu-check`.

Runs the tests compiled, times the kernels against the device's limits and the engine at real shapes with
random weights, each as a process with a budget of its own. Needs no installation, only torch, triton,
transformers, safetensors, numpy and pytest. Writes results.json, summary.md, log.txt and the launch
configurations it chose into one folder, and again after every few seconds, so that whoever ends it early
keeps what was measured. Exits 1 without a device or when a stage failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# Started by its path, in whatever folder.
sys.path.append(str(ROOT))

from deploy.gpu_summary import summary  # noqa: E402

SOURCES = ("services/src", "operator/src", "proto/src", "kernels/src")
# Less than the ten minutes that it promises, so that results can still be carried off.
TOTAL_S = 560.0
# A stage that would have less than this share of its budget is left out.
_LEAST_SHARE = 0.5
# What a benchmark stops before its stage would be stopped.
_MARGIN_S = 10.0
_GRACE_S = 10.0
_PROBE_S = 90.0
_CHOICES = "kernel-choices"
# A benchmark's exit status when its shape doesn't fit the device.
_DOES_NOT_FIT = 3
# Between two copies of what a running stage has written.
_COPY_S = 5.0
# Tests spend their time in the compiler.
_WORKERS = max(1, min(12, (os.cpu_count() or 1) - 2))
# Share of a stage that one test may take: one that hangs, in a kernel say, takes its process along only.
_TEST_SHARE = 0.8
_ENDED = re.compile(r"(?:(PASSED|FAILED|ERROR|SKIPPED) (\S+::\S+)|(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED))")
_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
if found["cuda"]:
    import triton
    p = torch.cuda.get_device_properties(0)
    found |= {"device": p.name, "capability": f"{p.major}.{p.minor}", "memory_bytes": p.total_memory,
        "multiprocessors": p.multi_processor_count, "triton": triton.__version__}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: of its files and in the summary.
        budget_s: seconds after which it is stopped.
        command: arguments for Python, given the result file to write and the seconds it has.
        result: name of that file.
    """

    name: str
    budget_s: float
    command: Callable[[Path, float], list[str]]
    result: str


@dataclass
class Outcome:
    """How a stage ended; status is "running", "passed", "failed", "timed out" or "skipped"."""

    stage: str
    status: str
    seconds: float = 0.0
    note: str = ""
    tests: dict[str, int] = field(default_factory=dict)
    failed_tests: list[str] = field(default_factory=list)


def tests(name: str, budget_s: float, *places: str) -> Stage:
    """A stage of pytest."""

    def command(result: Path, seconds: float) -> list[str]:
        config = ["-c", "deploy/pytest-gpu.ini", "--rootdir", str(ROOT)]
        spread = ["-n", str(_WORKERS)] if importlib.util.find_spec("xdist") else []
        if importlib.util.find_spec("pytest_timeout"):
            spread += [f"--timeout={_TEST_SHARE * seconds:.0f}", "--timeout-method=thread"]
        # Each test is named as it ends: a stage that is stopped leaves no other report.
        return ["-m", "pytest", *config, *spread, "-v", "--durations=10", f"--junitxml={result}", *places]

    return Stage(name, budget_s, command, f"{name}.xml")


def kernels(name: str, budget_s: float, *ops: str) -> Stage:
    """A stage of kernel benchmarks; an error of the device in one leaves the others alone."""

    def command(result: Path, seconds: float) -> list[str]:
        budget = ["--rounds", "3", "--budget-s", f"{seconds - _MARGIN_S:.0f}"]
        return ["-m", "twolane.kernels.bench", "--op", *ops, *budget, "--json", str(result)]

    return Stage(name, budget_s, command, f"{name}.json")


def shape(name: str, budget_s: float) -> Stage:
    """A stage of prefill and decode benchmarks."""

    def command(result: Path, seconds: float) -> list[str]:
        budget = ["--budget-s", f"{seconds - _MARGIN_S:.0f}"]
        return ["tests/bench/prefill_gpu.py", "--shape", name, *budget, "--json", str(result)]

    return Stage(name, budget_s, command, f"{name}.json")


# What tells most in least time comes first: time that one leaves goes to those behind it.
STAGES = (
    tests("smoke", 40.0, "tests/kernels/ops/test_bench_cases.py"),
    tests("engine-tests", 90.0, "tests/engine/kernel_path"),
    kernels("bench-decode", 55.0, "paged_decode"),
    kernels("bench-prefill", 75.0, "paged_prefill"),
    shape("qwen2.5-7b", 100.0),
    tests("kernel-tests", 110.0, "tests/kernels/ops"),
    kernels("bench-bytes", 50.0, "rms_norm", "rotary", "silu", "page_copy"),
    kernels("bench-logits", 45.0, "sampling", "logit_rules"),
    shape("qwen2.5-32b", 110.0),
    shape("qwen2.5-14b", 90.0),
)


def environment(work: Path) -> dict[str, str]:
    """Ours, with the sources on the path and the measured launch configurations beside the results."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_INTERPRET")}
    # The benchmarks import what lies beside them.
    own.pop("PYTHONSAFEPATH", None)
    own["PYTHONPATH"] = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    own["PYTHONUNBUFFERED"] = own["PYTHONDONTWRITEBYTECODE"] = "1"
    own["TWOLANE_KERNEL_CACHE_DIR"] = str(work / _CHOICES)
    return own


def probe() -> dict[str, Any] | None:
    """What torch sees, or None when there is no torch or no device; says which on stderr."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        print(f"gpu-check: asking torch for a device took more than {_PROBE_S:.0f} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"gpu-check: {sys.executable} can't use torch and triton: {last}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not found["cuda"]:
        print(
            "gpu-check: no CUDA device here (torch.cuda.is_available() is false); nothing was tested",
            file=sys.stderr,
        )
        return None
    return found


def run_stage(stage: Stage, work: Path, seconds: float, copy: Callable[[], object] = lambda: None) -> Outcome:
    """Runs one stage for at most so long; result and log lie in `work`, and `copy` is called now and then."""
    result, log = work / stage.result, work / f"{stage.name}.log"
    began_s = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, *stage.command(result, seconds)],
            cwd=ROOT,
            env=environment(work),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            in_time = _wait(process, seconds, copy)
        finally:
            _end(process)
    outcome = Outcome(stage.name, "passed", round(time.monotonic() - began_s, 1))
    if process.returncode != 0:
        outcome.status, outcome.note = "failed", f"exit status {process.returncode}"
    if process.returncode == _DOES_NOT_FIT:
        outcome.status, outcome.note = "skipped", "the shape does not fit this device"
    if not in_time:
        outcome.status, outcome.note = "timed out", f"stopped after {seconds:.0f} s"
    if result.suffix == ".xml":
        _count_tests(result, log, outcome)
    return outcome


def _wait(process: subprocess.Popen[bytes], seconds: float, copy: Callable[[], object]) -> bool:
    """Whether it ended in time; otherwise it is interrupted, which lets pytest report, then killed."""
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        try:
            process.wait(min(left_s, _COPY_S))
        except subprocess.TimeoutExpired:
            # A full disk is no reason to end what is measured.
            with contextlib.suppress(OSError):
                copy()
        else:
            return True
    _end(process)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends it, if it still runs, and whatever it started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGINT, signal.SIGKILL):
        # The group may be gone between the two.
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_S)
        except ProcessLookupError:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _count_tests(result: Path, log: Path, outcome: Outcome) -> None:
    """Reads pytest's report into the outcome; a run in which no test ran has failed.

    Without a report, since pytest was killed, the log's lines are counted.
    """
    try:
        root = ElementTree.parse(result).getroot()
    except (OSError, ElementTree.ParseError):
        _count_lines(log, outcome)
        return
    for suite in root.iter("testsuite"):
        for key in ("tests", "failures", "errors", "skipped"):
            outcome.tests[key] = outcome.tests.get(key, 0) + int(suite.get(key, 0))
    outcome.failed_tests = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if outcome.status == "passed" and outcome.tests.get("tests", 0) == outcome.tests.get("skipped", 0):
        outcome.status, outcome.note = "failed", "no test ran"


def _count_lines(log: Path, outcome: Outcome) -> None:
    found: dict[str, str] = {}
    for word, name, other_name, other_word in _ENDED.findall(
        log.read_text(encoding="utf-8", errors="replace")
    ):
        found[name or other_name] = word or other_word
    words = list(found.values())
    outcome.failed_tests = [name for name, word in found.items() if word in ("FAILED", "ERROR")]
    outcome.tests = {
        "tests": len(words),
        "failures": words.count("FAILED"),
        "errors": words.count("ERROR"),
        "skipped": words.count("SKIPPED"),
    }


def impersonal(text: str) -> str:
    """Without the folders of this machine, so that results can be committed."""
    for folder, name in ((sys.prefix, "<python>"), (str(ROOT), "."), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return re.sub(r"/(?:home|root|Users|tmp)/[\w.-]+", "<folder>", text)


class Report:
    """The files that are kept: few, so that they can be carried off, and complete at any moment."""

    def __init__(self, out: Path, work: Path, found: dict[str, Any]) -> None:
        """Takes the folder of the files, that of the stages' own, and what is known of the device."""
        self._out, self._work = out, work
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self.record: dict[str, Any] = {"began": began, **found, "python": sys.version.split()[0]}
        self.outcomes: list[Outcome] = []

    def write(self, running: str | None = None) -> str:
        """Gathers what there is, that of a running stage included; returns the summary."""
        stages = [asdict(outcome) for outcome in self.outcomes]
        if running is not None:
            stages.append(asdict(Outcome(running, "running")))
        results, logs = {}, []
        for stage in stages:
            name = stage["stage"]
            # A file may be half written.
            with contextlib.suppress(OSError, ValueError):
                results[name] = json.loads(impersonal((self._work / f"{name}.json").read_text("utf-8")))
            log = self._work / f"{name}.log"
            if log.exists():
                logs.append(f"===== {name} =====\n{log.read_text('utf-8', 'replace')}")
        record = {**self.record, "stages": stages, "results": results}
        self._put("results.json", json.dumps(record, indent=1) + "\n")
        self._put("log.txt", impersonal("\n".join(logs)))
        for path in (self._work / _CHOICES).glob("*.json"):
            shutil.copy(path, self._out / "kernel-choices.json")
        try:
            text = summary(record)
        except Exception as error:
            text = f"no summary of these results: {error!r}\n"
        self._put("summary.md", text)
        return text

    def _put(self, name: str, text: str) -> None:
        path = self._out / name
        path.with_suffix(".new").write_text(text, encoding="utf-8")
        path.with_suffix(".new").replace(path)


def run_all(stages: Sequence[Stage], report: Report, work: Path, ends_s: float) -> str:
    """Runs the stages one after the other, none longer than its budget and what is left of time.monotonic.

    Returns the summary.
    """
    for stage in stages:
        seconds = min(stage.budget_s, ends_s - time.monotonic())
        if seconds < _LEAST_SHARE * stage.budget_s:
            last = Outcome(stage.name, "skipped", note="no time left")
        else:
            print(f"{stage.name}: up to {seconds:.0f} s ...", flush=True)
            last = run_stage(stage, work, seconds, partial(report.write, stage.name))
        report.outcomes.append(last)
        report.write()
        print(f"{stage.name}: {last.status} after {last.seconds:.0f} s {last.note}", flush=True)
    return report.write()


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs, writes the results; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=f"{names}")
    parser.add_argument("--total-s", type=float, default=TOTAL_S)
    parser.add_argument("--out", type=Path, help="default: deploy/results/gpu-<date>-<device>")
    options = parser.parse_args(arguments)
    ends_s = time.monotonic() + options.total_s
    found = probe()
    if found is None:
        return 1
    device = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-")
    out: Path = options.out or ROOT / "deploy" / "results" / f"gpu-{datetime.now(UTC):%Y-%m-%d}-{device}"
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in STAGES if stage.name in options.only]
    if len(chosen) < len(STAGES):
        # By name they get the time there is.
        chosen = [replace(stage, budget_s=2 * stage.budget_s) for stage in chosen]
    with tempfile.TemporaryDirectory() as folder:
        report = Report(out, Path(folder), found)
        text = run_all(chosen, report, Path(folder), ends_s)
    print(f"\n{text}\nresults: {out}")
    return 1 if any(outcome.status in ("failed", "timed out") for outcome in report.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
