"""What stands between our metrics and a scaler: Prometheus, a server of external metrics, KEDA; real ones.

All of them run as pods of the cluster, with the rights that their authors give them, so that nothing is
reached in another way than in a user's cluster. What users copy is taken from `deploy/autoscaling`.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from deploy.cluster.binaries import ensure
from deploy.cluster.images import write_program
from deploy.cluster.real_cluster import RealCluster
from tests.operator.cluster.kube import ROOT, Json, Kube

EXAMPLES = ROOT / "deploy" / "autoscaling"
MONITORING = "monitoring"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
_IMAGE = "twolane.invalid/{}:test"

_RIGHTS = """\
- apiVersion: v1
  kind: Namespace
  metadata: {name: monitoring}
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: monitoring, namespace: monitoring}
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: monitoring}
  rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: monitoring}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: monitoring}
  subjects: [{kind: ServiceAccount, name: monitoring, namespace: monitoring}]
"""
_EXTERNAL_RIGHTS = """\
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: external-metrics-delegator}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
  subjects: [{kind: ServiceAccount, name: monitoring, namespace: monitoring}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: external-metrics-reader, namespace: kube-system}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
  subjects: [{kind: ServiceAccount, name: monitoring, namespace: monitoring}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: {name: external-metrics-reader}
  rules: [{apiGroups: [external.metrics.k8s.io], resources: ["*"], verbs: [get, list]}]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: {name: external-metrics-autoscaler}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: external-metrics-reader}
  subjects: [{kind: ServiceAccount, name: horizontal-pod-autoscaler, namespace: kube-system}]
- apiVersion: apiregistration.k8s.io/v1
  kind: APIService
  metadata: {name: v1beta1.external.metrics.k8s.io}
  spec:
    service: {name: external-metrics, namespace: monitoring}
    group: external.metrics.k8s.io
    version: v1beta1
    insecureSkipTLSVerify: true
    groupPriorityMinimum: 100
    versionPriority: 100
"""


def bring_image(cluster: RealCluster, name: str) -> str:
    """Makes an image of a program that was built, brings it to every node, and returns its reference."""
    path, reference = cluster.folder / f"{name}.tar", _IMAGE.format(name)
    write_program(path, reference, ensure(name)[name])
    for node in cluster.nodes.values():
        node.import_image(path)
    path.unlink()
    return reference


def start_prometheus(cluster: RealCluster, kube: Kube) -> None:
    """Prometheus with the example's ways to find our pods, as http://prometheus.monitoring:9090."""
    config = (EXAMPLES / "prometheus.yaml").read_text(encoding="utf-8")
    args = ["--config.file=/etc/config/config.yaml", "--storage.tsdb.path=/tmp/data"]
    image = bring_image(cluster, "prometheus")
    bodies = [*yaml.safe_load(_RIGHTS), *_server("prometheus", image, args, 9090, config)]
    _apply(kube, bodies)
    _wait(kube, MONITORING, "prometheus")


def start_external_metrics(cluster: RealCluster, kube: Kube) -> None:
    """What prometheus-adapter does, by the rules of the example."""
    rules = (EXAMPLES / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    args = ["--secure-port=6443", "--cert-dir=/tmp", "--config=/etc/config/config.yaml"]
    args += ["--prometheus-url=http://prometheus.monitoring:9090"]
    image = bring_image(cluster, "external-metrics")
    bodies = [*_server("external-metrics", image, args, 6443, rules), *yaml.safe_load(_EXTERNAL_RIGHTS)]
    _apply(kube, bodies)
    _wait(kube, MONITORING, "external-metrics")
    kube.kubectl("wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s")


def stop_external_metrics(kube: Kube) -> None:
    """Ends it: one server at most has the external metrics of a cluster."""
    kube.kubectl("delete", "apiservice", API_SERVICE)
    kube.kubectl("delete", "deployment", "external-metrics", "-n", MONITORING)


def start_keda(cluster: RealCluster, kube: Kube) -> None:
    """KEDA as its authors install it, but for where its images come from."""
    images = {"keda-operator": "keda", "keda-metrics-apiserver": "keda-adapter"}
    bodies: list[Json] = list(yaml.safe_load_all(ensure("keda.yaml")["keda.yaml"].read_text("utf-8")))
    for body in bodies:
        if body["kind"] == "Deployment":
            [container] = body["spec"]["template"]["spec"]["containers"]
            container["image"] = bring_image(cluster, images[body["metadata"]["name"]])
            container["imagePullPolicy"] = "Never"
    _apply(kube, bodies)
    for name in images:
        _wait(kube, "keda", name)
    kube.kubectl("wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=90s")


def _server(name: str, image: str, args: list[str], port: int, config: str) -> list[Json]:
    """A configuration, a pod that reads it, and its Service."""
    labels = {"app": name}
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "Never",
        "args": args,
        "ports": [{"containerPort": port}],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 2},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/config"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    volumes = [{"name": "config", "configMap": {"name": name}}, {"name": "tmp", "emptyDir": {}}]
    pod = {"serviceAccountName": MONITORING, "containers": [container], "volumes": volumes}
    metadata = {"name": name, "namespace": MONITORING}
    outside = 443 if port == 6443 else port
    template = {"metadata": {"labels": labels}, "spec": pod}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": config}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "selector": labels,
                "ports": [{"port": outside, "targetPort": port}],
            },
        },
    ]


def _apply(kube: Kube, bodies: list[Json]) -> None:
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies})
    kube.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=items)


def _wait(kube: Kube, namespace: str, name: str) -> None:
    kube.kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, "--timeout=180s", patience_s=200)
