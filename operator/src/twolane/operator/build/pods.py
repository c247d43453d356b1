"""The pod template that routers, brokers and workers have in common.

Everything here passes the `restricted` Pod Security Standard; only a hostPath source or a user's own
override can leave it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from twolane.operator.build.certificates import certificate_volume
from twolane.operator.build.model_volume import ModelVolume
from twolane.operator.names import COMPONENT_LABEL, PROBE_PORT, Component, Owner
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.pools import Resources
from twolane.operator.resources.shape import Json

USER = 65532
MARGIN_S = 15
"""Seconds between the end of a drain and the kill."""
STARTUP_S = 3600
"""How long a model may take to load."""
_PROBE_PERIOD_S = 5


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What differs between the pods of one ModelDeployment.

    Attributes:
        component: router, broker or worker.
        image: image of its containers.
        args: the verb of `twolane` and its flags.
        ports: container ports by name.
        probe_port: name of the port with /healthz and /readyz.
        labels: labels beside the usual ones.
        env: environment of the container.
        model: the model's files; None for a process that needs none.
        volumes: further volumes.
        mounts: their mounts.
        resources: resources of the container.
        fetch_resources: resources of the one that fetches the model.
    """

    component: Component
    image: str
    args: list[str]
    ports: dict[str, int]
    probe_port: str = "http"
    labels: dict[str, str] = field(default_factory=dict)
    env: list[Json] = field(default_factory=list)
    model: ModelVolume | None = None
    volumes: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)
    resources: Json = field(default_factory=dict)
    fetch_resources: Json = field(default_factory=dict)


def pod_template(owner: Owner, spec: ModelDeploymentSpec, plan: PodPlan) -> Json:
    """A complete pod template, before overrides."""
    labels = owner.labels() | {COMPONENT_LABEL: plan.component} | plan.labels
    volumes, mounts, flags = certificate_volume(owner, spec.tls, plan.component)
    plan = replace(
        plan,
        args=[*plan.args, *flags],
        volumes=[*plan.volumes, *volumes],
        mounts=[*plan.mounts, *mounts],
    )
    pod: Json = {
        "automountServiceAccountToken": False,
        # A service named twolane-router would put TWOLANE_ROUTER_… into the environment, which the
        # processes refuse as a typing error.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, plan)],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *plan.volumes],
    }
    if plan.model is not None:
        pod["volumes"] += plan.model.volumes
        if plan.model.fetch_args:
            pod["initContainers"] = [_fetcher(spec, plan, plan.model)]
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    return {"metadata": {"labels": labels}, "spec": pod}


def grace_s(spec: ModelDeploymentSpec) -> int:
    """Seconds from the wish to end a pod to its kill: the wait before, the drain, and a margin."""
    return spec.drain.pre_stop_seconds + spec.drain.timeout_seconds + MARGIN_S


def resources_of(resources: Resources | None) -> Json:
    """Resources as a container has them."""
    return {} if resources is None else resources.model_dump(exclude_defaults=True)


def _container(spec: ModelDeploymentSpec, plan: PodPlan) -> Json:
    def probe(path: str, **extra: int) -> Json:
        # A loaded Python process answers late; that is no reason to kill it.
        timing = {"periodSeconds": _PROBE_PERIOD_S, "timeoutSeconds": 5} | extra
        return {"httpGet": {"path": path, "port": plan.probe_port}, **timing}

    container = {
        **_confined(spec, plan),
        "name": "twolane",
        "args": plan.args,
        "env": [*_identity(), *_home(), *plan.env],
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"} for name, port in plan.ports.items()
        ],
        "startupProbe": probe("/healthz", failureThreshold=STARTUP_S // _PROBE_PERIOD_S),
        "livenessProbe": probe("/healthz", periodSeconds=10, failureThreshold=6),
        "readinessProbe": probe("/readyz", failureThreshold=2),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            *plan.mounts,
            *(plan.model.mounts if plan.model else []),
        ],
        "resources": plan.resources,
    }
    if spec.drain.pre_stop_seconds:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": spec.drain.pre_stop_seconds}}}
    return container


def _fetcher(spec: ModelDeploymentSpec, plan: PodPlan, model: ModelVolume) -> Json:
    writable = [{**mount, "readOnly": False} for mount in model.mounts]
    return {
        **_confined(spec, plan),
        "name": "fetch-model",
        "args": ["fetch", *model.fetch_args, "--log-level", spec.log_level],
        "env": [*_home(), *model.fetch_env],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *writable],  # noqa: S108
        "resources": plan.fetch_resources,
    }


def _confined(spec: ModelDeploymentSpec, plan: PodPlan) -> Json:
    return {
        "image": plan.image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": ["twolane"],
        # The last words of a process that could not start are what `kubectl get md` shows.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _home() -> list[Json]:
    return [{"name": "HOME", "value": "/tmp"}]  # noqa: S108


def _identity() -> list[Json]:
    paths = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]


PROBE_PORTS = {"http": PROBE_PORT}
"""Port of probes and metrics of every process but the router."""
