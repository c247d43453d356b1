"""What the operator knows without asking stays true: looks without reads, missed deletions, names retaken."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.cluster.control_plane import ControlPlane
from tests.operator.cluster.kube import Kube, eventually, model_deployment
from tests.operator.cluster.operator_process import OperatorProcess, operator_kubeconfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
OURS = "serving.twolane.dev/model-deployment=demo"


@pytest.fixture
def alone(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[tuple[OperatorProcess, Path]]:
    """An operator without a lease to lose, and the file with its port."""
    port_file = tmp_path / "port.json"
    flags = ("--no-leader-election", "--port-file", str(port_file))
    kubeconfig = operator_kubeconfig(kube, namespace, tmp_path)
    process = OperatorProcess(kubeconfig, namespace, tmp_path, flags=flags)
    process.start()
    yield process, port_file
    process.stop()


def _serving(kube: Kube, namespace: str) -> None:
    kube.apply(namespace, model_deployment())
    kube.until(namespace, "demo", "Ready", status="True")
    kube.until(namespace, "demo", "RolloutComplete", status="True")


def _counted(port_file: Path) -> tuple[int, int]:
    """Looks, and requests of any kind, since the start."""
    port = json.loads(port_file.read_text(encoding="utf-8"))["http"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    looks = sum(s.value for s in samples if s.name == "twolane_operator_reconcile_seconds_count")
    asked = [s for s in samples if s.name == "twolane_operator_api_requests_total"]
    # A kind that the cluster lacks is asked for from time to time.
    return int(looks), int(sum(s.value for s in asked if s.labels["status"] != "404"))


def test_a_look_that_finds_nothing_to_do_asks_for_nothing(
    kube: Kube, namespace: str, alone: tuple[OperatorProcess, Path]
) -> None:
    """A pod that turns unready and ready again is seen; what is changed for others wakes nobody."""
    _, port_file = alone
    _serving(kube, namespace)
    eventually(lambda: _counted(port_file)[0] > 0)
    looks, asked = _counted(port_file)
    kube.kubectl("annotate", "md", "demo", "-n", namespace, "note=1")
    eventually(lambda: _counted(port_file)[0] > looks)
    assert _counted(port_file)[1] == asked


def test_a_deletion_that_no_watch_told_of_is_found_after_the_watch_expired(
    kube: Kube,
    namespace: str,
    alone: tuple[OperatorProcess, Path],
    control_plane: ControlPlane | None,
) -> None:
    """An API server that starts anew knows nothing of what was before."""
    if control_plane is None:
        pytest.skip("only our own API server is restarted")
    operator, _ = alone
    _serving(kube, namespace)
    with operator.asleep():
        for kind in ("services", "networkpolicies", "pdb"):
            kube.kubectl("delete", kind, "-l", OURS, "-n", namespace)
        control_plane.stop_part("kube-apiserver")
        control_plane.start_part("kube-apiserver")
    for kind in ("services", "networkpolicies", "pdb"):
        eventually(lambda kind=kind: "demo" in " ".join(kube.names(namespace, kind)))  # type: ignore[misc]
    assert operator.said("watch expired")
    assert operator.running


def test_a_name_that_somebody_took_while_the_operator_slept_is_left_to_them(
    kube: Kube, namespace: str, alone: tuple[OperatorProcess, Path]
) -> None:
    """It still believes in the object of before, and has a change to make of it."""
    operator, _ = alone
    _serving(kube, namespace)
    with operator.asleep():
        kube.kubectl("delete", "service", "demo", "-n", namespace)
        kube.kubectl("create", "service", "clusterip", "demo", "--tcp=80:80", "-n", namespace)
        annotations = {"router": {"service": {"annotations": {"note": "new"}}}}
        kube.patch(namespace, "md", "demo", {"spec": annotations})
    condition = kube.until(namespace, "demo", "Ready", reason="ApplyRefused")
    assert "Service demo exists and does not belong to this ModelDeployment" in condition["message"]
    service = kube.get(namespace, "service", "demo")
    assert service["spec"]["ports"][0]["port"] == 80
    assert "ownerReferences" not in service["metadata"]
    kube.kubectl("delete", "service", "demo", "-n", namespace)
    kube.until(namespace, "demo", "Ready", status="True")


def test_an_end_is_not_reached_while_pods_are_still_there(
    kube: Kube, namespace: str, alone: tuple[OperatorProcess, Path]
) -> None:
    """Pods that came while the operator slept count before anything is final."""
    operator, _ = alone
    _serving(kube, namespace)
    with operator.asleep():
        kube.kubectl("scale", "wp", "demo-decode", "-n", namespace, "--replicas=3")
        kube.kubectl("delete", "md", "demo", "-n", namespace, "--wait=false")
    kube.kubectl("wait", "--for=delete", "md/demo", "-n", namespace, "--timeout=80s", patience_s=120)
    assert "Drained" in kube.events(namespace)
    eventually(lambda: not kube.listing(namespace, "pods", OURS))


def test_an_object_that_was_relabelled_by_hand_is_taken_back(
    kube: Kube, namespace: str, alone: tuple[OperatorProcess, Path]
) -> None:
    """Without its labels no watch tells of it; it is ours by its owner all the same."""
    _serving(kube, namespace)
    before = kube.get(namespace, "networkpolicy", "demo-worker")["metadata"]["uid"]
    key = OURS.split("=", maxsplit=1)[0]
    kube.kubectl("label", "networkpolicy", "demo-worker", f"{key}-", "-n", namespace)
    eventually(lambda: len(kube.listing(namespace, "networkpolicies", OURS)) == 3)
    assert kube.get(namespace, "networkpolicy", "demo-worker")["metadata"]["uid"] == before
