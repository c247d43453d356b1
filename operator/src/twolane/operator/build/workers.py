"""The pools of a ModelDeployment and the pods of their workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twolane.operator.build.flags import engine_flags, telemetry_flags
from twolane.operator.build.model_volume import model_volume
from twolane.operator.build.overlay import overlay
from twolane.operator.build.pods import PodPlan, pod_template, resources_of
from twolane.operator.names import (
    API_VERSION,
    DATA_PORT,
    POOL_LABEL,
    PROBE_PORT,
    WORKER_POOL,
    WORKER_PORT,
    Owner,
)
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.pools import Pool, Prefill
from twolane.operator.resources.shape import Json

Role = Literal["prefill", "decode", "mixed"]
Lane = Literal["both", "short", "long"]


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its short name inside the ModelDeployment, what its workers do, and what was declared.

    `may_sleep`: it may be empty though it has a least count, since the model scales to zero.
    """

    name: str
    role: Role
    lane: Lane
    declared: Pool
    may_sleep: bool = False

    @property
    def first_replicas(self) -> int:
        """Workers to begin with."""
        declared = self.declared
        return declared.scaling.min_replicas if declared.replicas is None else declared.replicas


def pools_of(spec: ModelDeploymentSpec) -> list[PoolPlan]:
    """Every pool declared, prefill first."""
    prefill, decode, mixed = spec.pools.prefill or Prefill(), spec.pools.decode, spec.pools.mixed
    places: list[tuple[str, Role, Lane, Pool | None]] = [
        ("prefill", "prefill", "both", prefill.shared),
        ("prefill-short", "prefill", "short", prefill.short),
        ("prefill-long", "prefill", "long", prefill.long),
        ("decode", "decode", "both", decode),
        ("mixed", "mixed", "both", mixed),
    ]
    sleeps = spec.scaling is not None and spec.scaling.scale_to_zero is not None
    return [
        PoolPlan(name, role, lane, declared, sleeps)
        for name, role, lane, declared in places
        if declared is not None
    ]


def worker_pool(owner: Owner, pool: PoolPlan) -> Json:
    """The WorkerPool of a pool, without the replicas: those belong to whoever scales."""
    spec: Json = {"modelDeployment": owner.name, "role": pool.role, "lane": pool.lane}
    spec["minReplicas"] = pool.declared.scaling.min_replicas
    if pool.declared.scaling.max_replicas is not None:
        spec["maxReplicas"] = pool.declared.scaling.max_replicas
    metadata = owner.metadata(owner.pool(pool.name), **{POOL_LABEL: pool.name})
    return {"apiVersion": API_VERSION, "kind": WORKER_POOL, "metadata": metadata, "spec": spec}


def worker_template(owner: Owner, spec: ModelDeploymentSpec, pool: PoolPlan, image: str, broker: str) -> Json:
    """The pods of one pool.

    Args:
        owner: the ModelDeployment.
        spec: its spec.
        pool: which pool.
        image: image of the container.
        broker: host:port of the broker they register at.
    """
    model = model_volume(spec.model)
    args = ["worker", "--role", pool.role, "--lane", pool.lane, "--model-dir", model.model_dir]
    args += ["--served-model-name", spec.model.name or owner.name, "--worker-id", "$(POD_NAME)"]
    args += ["--broker", broker, "--host", "0.0.0.0", "--advertise-host", "$(POD_IP)"]  # noqa: S104
    args += ["--port", str(WORKER_PORT), "--http-port", str(PROBE_PORT), "--data-port", str(DATA_PORT)]
    args += ["--drain-timeout-s", str(spec.drain.timeout_seconds)]
    args += [*engine_flags(spec.engine, pool.declared.engine), *telemetry_flags(spec)]
    plan = PodPlan(
        component="worker",
        image=image,
        args=args,
        ports={"grpc": WORKER_PORT, "http": PROBE_PORT, "data": DATA_PORT},
        labels={POOL_LABEL: pool.name},
        model=model,
        # The page pool of a CPU worker lies in shared memory; a container has 64 MiB of it by default.
        volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        mounts=[{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
        resources=_resources(pool.declared),
    )
    template = pod_template(owner, spec, plan)
    template["spec"] |= _placement(owner, pool)
    return overlay(template, spec.pod_template, pool.declared.pod_template)


def _resources(pool: Pool) -> Json:
    resources = resources_of(pool.resources)
    if pool.gpu is not None:
        # An extended resource has one quantity; the API server takes the request from the limit.
        limits: Json = {**resources.get("limits", {}), pool.gpu.resource: pool.gpu.count}
        resources = {**resources, "limits": limits}
    return resources


def _placement(owner: Owner, pool: PoolPlan) -> Json:
    selector = {"matchLabels": owner.labels() | {POOL_LABEL: pool.name}}
    spread = [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    gpu = pool.declared.gpu
    if gpu is None:
        return {"topologySpreadConstraints": spread}
    wanted: Json = {"topologySpreadConstraints": spread}
    # Nodes with devices are commonly tainted with the resource's name.
    wanted["tolerations"] = [{"key": gpu.resource, "operator": "Exists", "effect": "NoSchedule"}]
    if gpu.type:
        wanted["nodeSelector"] = {gpu.type_label: gpu.type}
    return wanted
