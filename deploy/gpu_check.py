"""All work that needs a CUDA device, in one command and ten minutes: `make gpu-check`.

Runs the tests compiled, times the kernels against the device's limits and the engine at real shapes with
random weights, each as a process with a budget of its own. Needs no installation, only torch, triton,
transformers, safetensors, numpy and pytest. Writes JSON, logs and summary.md into one folder; exits 1 without
a device or when a stage failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# Started by its path, in whatever folder.
sys.path.append(str(ROOT))

from deploy.gpu_summary import summary  # noqa: E402

SOURCES = ("services/src", "operator/src", "proto/src", "kernels/src")
# Less than the ten minutes that a machine may be lent for, so that results can still be carried off.
TOTAL_S = 560.0
# A stage that would have less than this share of its budget is left out.
_LEAST_SHARE = 0.5
# What a benchmark stops before its stage would be stopped.
_MARGIN_S = 10.0
_GRACE_S = 10.0
_PROBE_S = 90.0
# A benchmark's exit status when its shape doesn't fit the device.
_DOES_NOT_FIT = 3
# Tests spend their time in the compiler.
_WORKERS = max(1, min(8, (os.cpu_count() or 1) // 2))
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
    """How a stage ended; status is "passed", "failed", "timed out" or "skipped"."""

    stage: str
    status: str
    seconds: float = 0.0
    note: str = ""
    tests: dict[str, int] = field(default_factory=dict)
    failed_tests: list[str] = field(default_factory=list)


def tests(name: str, budget_s: float, folder: str) -> Stage:
    """A stage of pytest."""

    def command(result: Path, _seconds: float) -> list[str]:
        config = ["-c", "deploy/pytest-gpu.ini", "--rootdir", str(ROOT)]
        spread = ["-n", str(_WORKERS)] if importlib.util.find_spec("xdist") else []
        return ["-m", "pytest", *config, *spread, "-q", "--durations=10", f"--junitxml={result}", folder]

    return Stage(name, budget_s, command, f"{name}.xml")


def shape(name: str, budget_s: float) -> Stage:
    """A stage of prefill and decode benchmarks."""

    def command(result: Path, seconds: float) -> list[str]:
        budget = ["--budget-s", f"{seconds - _MARGIN_S:.0f}"]
        return ["tests/bench/prefill_gpu.py", "--shape", name, *budget, "--json", str(result)]

    return Stage(name, budget_s, command, f"{name}.json")


# In order of worth: time that one leaves goes to those behind it.
STAGES = (
    tests("kernel-tests", 150.0, "tests/kernels/ops"),
    tests("engine-tests", 75.0, "tests/engine/kernel_path"),
    Stage(
        "kernel-bench",
        160.0,
        lambda result, _seconds: ["-m", "twolane.kernels.bench", "--rounds", "3", "--json", str(result)],
        "kernel-bench.json",
    ),
    shape("qwen2.5-7b", 110.0),
    shape("qwen2.5-32b", 110.0),
    shape("qwen2.5-14b", 90.0),
)


def environment(out: Path) -> dict[str, str]:
    """Ours, with the sources on the path and the measured launch configurations among the results."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_INTERPRET")}
    # The benchmarks import what lies beside them.
    own.pop("PYTHONSAFEPATH", None)
    own["PYTHONPATH"] = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    own["PYTHONUNBUFFERED"] = own["PYTHONDONTWRITEBYTECODE"] = "1"
    own["TWOLANE_KERNEL_CACHE_DIR"] = str(out / "kernel-choices")
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


def run_stage(stage: Stage, out: Path, seconds: float) -> Outcome:
    """Runs one stage for at most so long; its output goes to a log."""
    result, log = out / stage.result, out / f"{stage.name}.log"
    began_s = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, *stage.command(result, seconds)],
            cwd=ROOT,
            env=environment(out),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        in_time = _wait(process, seconds)
    outcome = Outcome(stage.name, "passed", round(time.monotonic() - began_s, 1))
    if process.returncode != 0:
        outcome.status, outcome.note = "failed", f"exit status {process.returncode}"
    if process.returncode == _DOES_NOT_FIT:
        outcome.status, outcome.note = "skipped", "the shape does not fit this device"
    if not in_time:
        outcome.status, outcome.note = "timed out", f"stopped after {seconds:.0f} s"
    if result.suffix == ".xml" and result.exists():
        _count_tests(result, outcome)
    for file in (log, *out.glob(f"{stage.name}.json")):
        file.write_text(impersonal(file.read_text(encoding="utf-8", errors="replace")), encoding="utf-8")
    return outcome


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ended in time; otherwise it is interrupted, which lets pytest report, then killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGINT, signal.SIGKILL):
            # The group may be gone between the two.
            try:
                os.killpg(process.pid, number)
                process.wait(_GRACE_S)
            except ProcessLookupError:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                continue
        return False
    return True


def _count_tests(result: Path, outcome: Outcome) -> None:
    """Reads pytest's report into the outcome and removes it; a run in which no test ran has failed."""
    root = ElementTree.parse(result).getroot()
    for suite in root.iter("testsuite"):
        for key in ("tests", "failures", "errors", "skipped"):
            outcome.tests[key] = outcome.tests.get(key, 0) + int(suite.get(key, 0))
    outcome.failed_tests = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    result.unlink()
    if outcome.status == "passed" and outcome.tests.get("tests", 0) == outcome.tests.get("skipped", 0):
        outcome.status, outcome.note = "failed", "no test ran"


def impersonal(text: str) -> str:
    """Without the folders of this machine, so that results can be committed."""
    for folder, name in ((sys.prefix, "<python>"), (str(ROOT), "."), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return re.sub(r"/(?:home|root|Users|tmp)/[\w.-]+", "<folder>", text)


def run_all(stages: Sequence[Stage], out: Path, ends_s: float) -> list[Outcome]:
    """Runs the stages one after the other, none longer than its budget and what is left of time.monotonic."""
    outcomes = []
    for stage in stages:
        seconds = min(stage.budget_s, ends_s - time.monotonic())
        if seconds < _LEAST_SHARE * stage.budget_s:
            outcomes.append(Outcome(stage.name, "skipped", note="no time left"))
        else:
            print(f"{stage.name}: up to {seconds:.0f} s ...", flush=True)
            outcomes.append(run_stage(stage, out, seconds))
        last = outcomes[-1]
        print(f"{stage.name}: {last.status} after {last.seconds:.0f} s {last.note}", flush=True)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs, writes the summary; the exit status."""
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
    began = datetime.now(UTC)
    device = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-")
    out: Path = options.out or ROOT / "deploy" / "results" / f"gpu-{began:%Y-%m-%d}-{device}"
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_all([stage for stage in STAGES if stage.name in options.only], out, ends_s)
    record = {
        "began": began.isoformat(timespec="seconds"),
        **found,
        "python": sys.version.split()[0],
        "stages": [asdict(outcome) for outcome in outcomes],
    }
    (out / "summary.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = summary(record, out)
    (out / "summary.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nresults: {out}")
    return 1 if any(outcome.status in ("failed", "timed out") for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
