"""helm as the chart's tests use it: a release, what it says, and everything a cluster holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from deploy.cluster.binaries import ensure
from tests.operator.cluster.kube import Kube, Refused

CHART = Path(__file__).parents[2] / "helm" / "twolane"
NAME = "twolane"
# What the cluster itself writes while a release lives, and takes away in its own time.
_PASSING = re.compile(
    r"^(event|endpoints|endpointslice|pod|replicaset|controllerrevision|lease\.coordination\.k8s\.io/kube-)"
)


def helm(*args: str) -> str:
    """Runs helm and returns what it prints.

    Raises:
        Refused: it failed.
    """
    command = [str(ensure("helm")["helm"]), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


class Release:
    """The chart in one namespace."""

    def __init__(self, kube: Kube, namespace: str, chart: Path = CHART) -> None:
        self.kube = kube
        self.namespace = namespace
        self.chart = chart

    def install(self, *values: str) -> str:
        """Installs it and waits for its pods; returns the notes."""
        return self._run("install", NAME, str(self.chart), *values, "--wait", "--timeout", "2m")

    def upgrade(self, *values: str) -> str:
        """Upgrades it to other values."""
        return self._run("upgrade", NAME, str(self.chart), *values, "--wait", "--timeout", "2m")

    def rollback(self) -> None:
        """Back to the revision before."""
        self._run("rollback", NAME, "--wait", "--timeout", "2m")

    def uninstall(self) -> None:
        """Ends it."""
        self._run("uninstall", NAME, "--wait", "--timeout", "2m")

    def manifest(self) -> str:
        """What helm says is installed."""
        return self._run("get", "manifest", NAME)

    def _run(self, *args: str) -> str:
        return helm(*args, "--kubeconfig", str(self.kube.kubeconfig), "--namespace", self.namespace)


def everything(kube: Kube) -> set[str]:
    """Every object of every kind, as kind/namespace/name, but what passes by itself."""
    kinds = kube.kubectl("api-resources", "--verbs=list", "--output=name").split()
    template = r"{range .items[*]}{.kind}{'/'}{.metadata.namespace}{'/'}{.metadata.name}{'\n'}{end}"
    template = template.replace("'", '"')
    wanted = [kind for kind in kinds if not _PASSING.match(kind)]
    lines = kube.kubectl("get", ",".join(wanted), "--all-namespaces", f"--output=jsonpath={template}")
    return {line for line in lines.splitlines() if line}
