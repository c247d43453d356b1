"""What the cluster tests ask the API server, independent of the operator's own client."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deploy.cluster.binaries import ensure
from deploy.cluster.control_plane import kwok_node

ROOT = Path(__file__).parents[3]
CRDS = ROOT / "helm" / "twolane" / "crds"
WAIT_S = 90.0
Json = dict[str, Any]
T = TypeVar("T")


class Refused(Exception):
    """kubectl failed; the message is what it said."""


class Kube:
    """kubectl with a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.program = str(ensure("kubectl")["kubectl"])

    def kubectl(self, *args: str, text: str | None = None, patience_s: float = 30.0) -> str:
        """Runs kubectl and returns what it prints; no request of it may take longer than `patience_s`.

        Raises:
            Refused: it failed.
        """
        command = [
            self.program,
            "--kubeconfig",
            str(self.kubeconfig),
            f"--request-timeout={patience_s:.0f}s",
            *args,
        ]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=patience_s + 90
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def apply(self, namespace: str, body: Json) -> str:
        """Applies an object as a user would."""
        return self.kubectl("apply", "--namespace", namespace, "--filename", "-", text=json.dumps(body))

    def get(self, namespace: str, kind: str, name: str) -> Json:
        """One object."""
        found: Json = json.loads(
            self.kubectl("get", kind, name, "--namespace", namespace, "--output", "json")
        )
        return found

    def listing(self, namespace: str, kind: str, selector: str = "") -> list[Json]:
        """All objects of a kind."""
        args = ["get", kind, "--namespace", namespace, "--output", "json", "--selector", selector]
        items: list[Json] = json.loads(self.kubectl(*args))["items"]
        return items

    def names(self, namespace: str, kind: str) -> list[str]:
        """Their names."""
        return sorted(item["metadata"]["name"] for item in self.listing(namespace, kind))

    def patch(self, namespace: str, kind: str, name: str, body: Json, *args: str) -> None:
        """A merge patch by hand."""
        text = json.dumps(body)
        self.kubectl("patch", kind, name, "--namespace", namespace, "--type=merge", "--patch", text, *args)

    def events(self, namespace: str) -> dict[str, str]:
        """Messages of the Events in a namespace, by reason; the last of each."""
        found = self.listing(namespace, "events.v1.")
        return {event["reason"]: event.get("note") or event.get("message", "") for event in found}

    def condition(self, namespace: str, name: str, kind: str) -> Json:
        """A condition of a ModelDeployment; empty before it is written."""
        conditions = self.get(namespace, "md", name).get("status", {}).get("conditions", [])
        return next((item for item in conditions if item["type"] == kind), {})

    def until(self, namespace: str, name: str, kind: str, **wanted: Any) -> Json:
        """Waits until a condition has the fields wanted, and returns it."""

        def matches() -> Json:
            condition = self.condition(namespace, name, kind)
            if any(condition[field] != value for field, value in wanted.items()):
                # Shown when the time is over.
                raise KeyError(str(condition))
            return condition

        return eventually(matches)

    def add_node(self, name: str) -> None:
        """A node that kwok looks after."""
        self.kubectl("apply", "--filename", "-", text=kwok_node(name, gpus=64))

    def make_namespace(self) -> str:
        """A new namespace that refuses pods beyond the restricted standard."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "--filename", "-", text=json.dumps(body))
        return name

    def drop_namespace(self, name: str) -> None:
        """Ends it without waiting; objects that no operator looks after any more lose their finalizer."""
        for item in self.names(name, "md"):
            self.patch(name, "md", item, {"metadata": {"finalizers": []}})
        self.kubectl("delete", "namespace", name, "--wait=false")


def eventually(question: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """The first true answer to a question asked again and again; a failed kubectl counts as no answer.

    Raises:
        AssertionError: there is none in time; the message has the last answer.
    """
    deadline = time.monotonic() + timeout_s
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            if answer := question():
                return answer
        except (Refused, KeyError) as error:
            answer = error
        time.sleep(0.25)
    raise AssertionError(f"not within {timeout_s:.0f} s; the last answer was {answer!r}")


def model_deployment(name: str = "demo", **spec: Any) -> Json:
    """A small ModelDeployment whose image exists nowhere; kwok does not mind. Rollouts do not soak."""
    rollout = {"rollback": {"soakSeconds": 0}} | spec.pop("rollout", {})
    return {
        "apiVersion": "serving.twolane.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": {"imagePath": "/opt/model"}, "rollout": rollout, **spec},
    }
