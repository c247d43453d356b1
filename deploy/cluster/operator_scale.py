"""How the operator bears a large cluster: `PYTHONPATH=. python -m deploy.cluster.operator_scale`.

A real API server with kwok's nodes and pods, and `twolane operator` as a process of its own: many
ModelDeployments are made, left alone, scaled, found again after a restart, and deleted. Prints tables of
what the operator took and of what every other program took, and writes them with the numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.cluster.binaries import ensure
from deploy.cluster.control_plane import ControlPlane, kwok_node
from deploy.cluster.processes import Process, StartError

ROOT = Path(__file__).parents[2]
NAMESPACES = 10
LIMIT_S = 3600.0
QUIET_S = 60.0
CALM_S = 5.0
RESYNC_S = 300.0
POLL_S = 4.0
MODELS = "/apis/serving.twolane.dev/v1alpha1/modeldeployments"
DEVICES = 16
"""Of each node: more than the workers need, or some would wait for ever."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the cluster is.

    Attributes:
        nodes: nodes of kwok's, with DEVICES devices each.
        models: ModelDeployments, spread over NAMESPACES namespaces.
        workers: workers of each, half of them prefill; beside them two routers and a broker.
    """

    nodes: int
    models: int
    workers: int


class Bench:
    """One control plane, one operator, and what the operator says about itself."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder, self._size = folder, size
        self.plane = ControlPlane(folder)
        self._port_file = folder / "operator.json"
        command = [sys.executable, "-m", "twolane.cli.main", "operator", "--image", "twolane:bench"]
        command += ["--no-leader-election", "--http-port", "0", "--port-file", str(self._port_file)]
        command += ["--resync-s", f"{RESYNC_S:.0f}"]
        os.environ["KUBECONFIG"] = str(self.plane.kubeconfig)
        self.operator = Process("operator", command, folder)
        self._kubectl_s = 0.0
        self.phases: list[Json] = []

    def prepare(self) -> None:
        """Starts the control plane and fills it with nodes."""
        self.plane.start()
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "helm" / "twolane" / "crds"))
        names = [f"node-{number:04}" for number in range(self._size.nodes)]
        self._apply([json.loads(kwok_node(name, gpus=DEVICES)) for name in names])
        self._apply([_namespace(number) for number in range(NAMESPACES)])
        self.start_operator()

    def start_operator(self) -> None:
        """Starts it and waits until it serves its metrics."""
        self._port_file.unlink(missing_ok=True)
        self.operator.start()
        self.operator.wait_for(self._port_file.exists, 60.0)

    def kubectl(self, *args: str, text: str | None = None) -> str:
        """Runs kubectl and returns what it prints."""
        command, before_s = [str(ensure("kubectl")["kubectl"]), *args], _ended_children_s()
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=900)
        self._kubectl_s += _ended_children_s() - before_s
        if done.returncode:
            raise StartError(done.stderr[-2000:])
        return done.stdout

    def _apply(self, bodies: list[Json]) -> None:
        for start in range(0, len(bodies), 100):
            items = {"apiVersion": "v1", "kind": "List", "items": bodies[start : start + 100]}
            self.kubectl("apply", "--server-side", "--validate=ignore", "-f", "-", text=json.dumps(items))

    def declare(self) -> None:
        """Makes every ModelDeployment."""
        self._apply([_model(number, self._size.workers) for number in range(self._size.models)])

    def ready(self) -> int:
        """ModelDeployments whose workers are all ready in their present count."""
        path = "-o=jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].reason}{'\\n'}{end}"
        return self.kubectl("get", "md", "-A", path).split().count("Serving")

    def phase(
        self, name: str, act: Callable[[], None], done: Callable[[], bool], *, anew: bool = False
    ) -> None:
        """Runs one phase to its end and keeps what it took; `anew` for one that starts another operator."""
        print(f"{name} ...", flush=True)
        before, cpu_s, began = {} if anew else self._samples(), self._cpu_s(), time.monotonic()
        act()
        while not done():
            if time.monotonic() - began > LIMIT_S:
                raise StartError(f"{name}: not over after {LIMIT_S:.0f} s")
            time.sleep(POLL_S)
        spent = _spent(before, self._samples())
        used = {program: round(now - cpu_s.get(program, 0.0), 1) for program, now in self._cpu_s().items()}
        used["operator"] = spent["cpu_s"]
        self.phases.append(
            {
                "phase": name,
                "seconds": round(time.monotonic() - began, 1),
                **spent,
                "cpu_s_of": used,
                "load": round(os.getloadavg()[0], 1),
            }
        )
        print(self.phases[-1], flush=True)

    def _cpu_s(self) -> dict[str, float]:
        """Processor seconds of every program but the operator, which says so itself."""
        found = {name: _cpu_seconds(pid) for name, pid in self.plane.pids().items()}
        return found | {"kubectl": self._kubectl_s}

    def any_left(self, path: str) -> bool:
        """Whether an object of a path still exists."""
        return bool(json.loads(self.kubectl("get", "--raw", f"{path}?limit=1"))["items"])

    def restart(self) -> None:
        """Ends the operator and starts it again."""
        self.operator.stop()
        self.start_operator()

    def seen_anew(self) -> bool:
        """Whether an operator that started anew has looked at everything and come to rest."""
        looks = self._samples().get("twolane_operator_reconcile_seconds_count{}", 0.0)
        return looks >= self._size.models and self.idle()

    def idle(self) -> bool:
        """Whether hardly anything is reconciled but what is looked at again anyway, from time to time."""
        before = self._samples()
        time.sleep(CALM_S)
        usual = self._size.models * CALM_S / RESYNC_S
        return bool(_spent(before, self._samples())["reconciles"] <= 2 * usual + 3)

    def _samples(self) -> dict[str, float]:
        if not self._port_file.exists():
            return {}
        port = json.loads(self._port_file.read_text(encoding="utf-8"))["http"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                samples[f"{sample.name}{{{labels}}}"] = sample.value
        return samples


def _ended_children_s() -> float:
    """Processor seconds of programs that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spent(before: dict[str, float], after: dict[str, float]) -> Json:
    """What happened between two readings of the operator's metrics."""

    def grown(key: str) -> float:
        return after[key] - before.get(key, 0.0)

    def total(prefix: str) -> float:
        return sum(grown(key) for key in after if key.startswith(prefix))

    reconciles = total("twolane_operator_reconcile_seconds_count")
    reads, calls = (total(f"twolane_operator_api_requests_total{{{m}") for m in ("method=GET", ""))
    buckets = sorted(
        (float(key.split("le=")[1].rstrip("}")), grown(key))
        for key in after
        if key.startswith("twolane_operator_reconcile_seconds_bucket")
    )
    return {
        "reconciles": int(reconciles),
        "p50_s": _quantile(buckets, 0.5),
        "p99_s": _quantile(buckets, 0.99),
        "calls_per_reconcile": round(calls / reconciles, 2) if reconciles else 0.0,
        "reads_per_reconcile": round(reads / reconciles, 2) if reconciles else 0.0,
        "cpu_s": round(total("process_cpu_seconds_total"), 1),
        "memory_mib": round(after.get("process_resident_memory_bytes{}", 0.0) / 2**20),
    }


def _quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """By linear interpolation within a bucket, as Prometheus does it."""
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    for (low, below), (high, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= rank:
            inside = (rank - below) / (count - below)
            return round(low + (high - low) * inside, 4) if high != float("inf") else low
    return None


def _namespace(number: int) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"team-{number}"}}


def _model(number: int, workers: int) -> Json:
    gpu = {"gpu": {"count": 1}}
    prefill, decode = workers // 2, workers - workers // 2
    return {
        "apiVersion": "serving.twolane.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": f"model-{number:04}", "namespace": f"team-{number % NAMESPACES}"},
        "spec": {
            "model": {"imagePath": "/model"},
            "pools": {
                "prefill": {"shared": {"replicas": prefill, **gpu}},
                "decode": {"replicas": decode, **gpu},
            },
        },
    }


def run(folder: Path, size: Size) -> Json:
    """Every phase; returns the report."""
    bench = Bench(folder, size)
    try:
        bench.prepare()
        models = size.models
        bench.phase("make all", bench.declare, lambda: bench.ready() == models and bench.idle())
        bench.phase("leave alone", lambda: time.sleep(QUIET_S), lambda: True)
        grown = size.workers // 2 + 1

        def scale() -> None:
            for namespace in range(NAMESPACES):
                names = [f"model-{n:04}-prefill" for n in range(namespace, models, NAMESPACES)][:5]
                bench.kubectl("scale", "wp", *names, "-n", f"team-{namespace}", f"--replicas={grown}")

        bench.phase("scale 50 pools", scale, lambda: bench.ready() == models and bench.idle())
        bench.phase("restart", bench.restart, bench.seen_anew, anew=True)
        pods = len(bench.kubectl("get", "pods", "-A", "-o", "name").split())

        def delete() -> None:
            bench.kubectl("delete", "md", "--all", "-A", "--wait=false")

        bench.phase("delete all", delete, lambda: not bench.any_left(MODELS))
        # They follow by their owner references: the cluster's own work.
        bench.phase("pods end", lambda: None, lambda: not bench.any_left("/api/v1/pods"))
        return {"nodes": size.nodes, "models": models, "pods": pods, "phases": bench.phases}
    finally:
        bench.operator.stop()
        bench.plane.stop()


def table(report: Json) -> str:
    """The report for people."""
    phases = report["phases"]
    names = [name for name in phases[0] if name != "cpu_s_of"]
    lines = [f"{report['nodes']} nodes, {report['models']} ModelDeployments, {report['pods']} pods", ""]
    lines += _rows(names, [[phase[name] for name in names] for phase in phases])
    programs = list(phases[0]["cpu_s_of"])
    lines += ["", "Processor seconds of each program:", ""]
    used = [[phase["phase"], *(phase["cpu_s_of"][program] for program in programs)] for phase in phases]
    return "\n".join([*lines, *_rows(["phase", *programs], used)]) + "\n"


def _rows(names: list[str], rows: list[list[Any]]) -> list[str]:
    head = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return head + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="operator_scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--workers", type=int, default=17, help="of each ModelDeployment")
    parser.add_argument("--out", type=Path, help="folder for report.json and table.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twolane-scale-") as folder:
        report = run(Path(folder), Size(chosen.nodes, chosen.models, chosen.workers))
    print(table(report))
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (chosen.out / "table.md").write_text(table(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
