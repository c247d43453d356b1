"""The GPU benchmark runs at a tiny shape on a CPU, with no more packages than a bare GPU machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("services/src", "operator/src", "proto/src", "kernels/src")
# Runs the script sys.argv[1], with imports of what such a machine lacks failing.
BARE = """
import runpy, sys
ABSENT = {"pydantic", "pydantic_settings", "opentelemetry", "starlette", "grpc", "redis", "orjson", "uvicorn"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_bare(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository as on a bare machine."""
    own = {"PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in SOURCES), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", BARE, script, *arguments],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_tiny_shape_is_measured_on_a_cpu(tmp_path: Path) -> None:
    """Every policy answers prompts and computes tokens; prefixes are found only where they are reused."""
    file = tmp_path / "tiny.json"
    small = ("--budget-s", "80", "--slice-s", "0.1", "--clients", "1", "4", "--longest", "600")
    done = run_bare(
        "tests/bench/prefill_gpu.py", "--shape", "tiny", "--device", "cpu", *small, "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert [(row["prefix_reuse"], row["clients"], row["policy"]) for row in record["prefill"]] == [
        (reuse, clients, policy)
        for clients in (1, 4)
        for reuse in (False, True)
        for policy in ("fcfs", "laps_fixed", "laps")
    ]
    for row in record["prefill"]:
        assert row["prompts"] > 0
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p90_ms"] <= row["ttft_p99_ms"]
        assert row["computed_tok_per_s"] > 0
        assert row["prefix_reuse"] or row["cached_tokens"] == 0
    assert sum(row["cached_tokens"] for row in record["prefill"]) > 0
    assert len(record["decode"]) == 10
    assert all(bool(row["note"]) == (row["tpot_ms"] is None) for row in record["decode"])
    assert record["decode"][0]["tpot_ms"] > 0


def test_kernel_benchmarks_and_kernel_path_need_no_other_packages(tmp_path: Path) -> None:
    """What the other stages import is there on a bare machine too."""
    script = tmp_path / "imports.py"
    script.write_text(
        "import twolane.kernels.bench.__main__\n"
        "import twolane.engine.kernel_forward, twolane.engine.kernel_sampler\n"
    )
    done = run_bare(str(script))
    assert done.returncode == 0, done.stderr
