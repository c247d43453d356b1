"""The pools of a ModelDeployment and the pods of their workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twolane.operator.build.flags import engine_flags, telemetry_flags
from twolane.operator.build.model_volume import model_volume
from twolane.operator.build.overlay import overlay
from twolane.operator.build.pods import PodPlan, pod_template, resources_of
from twolane.operator.names import (
    API_VERSION,
    DATA_PORT,
    GROUP_LABEL,
    INDEX_LABEL,
    POOL_LABEL,
    PROBE_PORT,
    RANK_PORT,
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
    # Names tell pools apart; what is declared may hold dictionaries, which have no hash.
    declared: Pool = field(hash=False)
    may_sleep: bool = False

    @property
    def pods_per_worker(self) -> int:
        """Pods of one worker; ranks that share a pod are no pods of their own."""
        parallel = self.declared.tensor_parallel
        return 1 if parallel is None else parallel.pods_per_worker

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
    args += ["--drain-timeout-s", str(spec.drain.timeout_seconds), *_rank_flags(owner, pool)]
    args += [*engine_flags(spec.engine, pool.declared.engine), *telemetry_flags(spec)]
    plan = PodPlan(
        component="worker",
        image=image,
        args=args,
        ports={"grpc": WORKER_PORT, "http": PROBE_PORT, "data": DATA_PORT, **_rank_ports(pool)},
        env=_rank_env(pool),
        labels={POOL_LABEL: pool.name},
        model=model,
        # The page pool of a CPU worker lies in shared memory; a container has 64 MiB of it by default.
        volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        mounts=[{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
        resources=_resources(pool.declared),
        fetch_resources=_guaranteed(pool.declared),
    )
    template = pod_template(owner, spec, plan)
    template["spec"] |= _placement(owner, pool)
    return overlay(template, spec.pod_template, pool.declared.pod_template)


def _rank_flags(owner: Owner, pool: PoolPlan) -> list[str]:
    """How the ranks of a worker find each other; those of one pod are started by its one process."""
    parallel = pool.declared.tensor_parallel
    if parallel is None:
        return []
    flags = ["--tensor-parallel-size", str(parallel.size)]
    if parallel.timeout_seconds is not None:
        flags += ["--tensor-parallel-timeout-s", str(parallel.timeout_seconds)]
    if pool.pods_per_worker == 1:
        return flags
    address = f"$(WORKER)-0.$(WORKER).{owner.namespace}.svc:{RANK_PORT}"
    return [*flags, "--tensor-parallel-rank", "$(RANK)", "--tensor-parallel-address", address]


def _rank_ports(pool: PoolPlan) -> dict[str, int]:
    return {"ranks": RANK_PORT} if pool.pods_per_worker > 1 else {}


def _rank_env(pool: PoolPlan) -> list[Json]:
    if pool.pods_per_worker == 1:
        return []
    labels = {"WORKER": GROUP_LABEL, "RANK": INDEX_LABEL}
    paths = {name: f"metadata.labels['{label}']" for name, label in labels.items()}
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]


def _guaranteed(pool: Pool) -> Json:
    """Resources of a pod that a kubelet may align with its device: whole CPUs, as requested as allowed.

    Every container of the pod must have such, the one that fetches the model too.
    """
    if pool.gpu is None or not pool.gpu.numa_aligned or pool.resources is None:
        return {}
    limits = pool.resources.limits
    fixed = {name: limits[name] for name in ("cpu", "memory")}
    return {"requests": fixed, "limits": fixed}


def _resources(pool: Pool) -> Json:
    resources = resources_of(pool.resources)
    if guaranteed := _guaranteed(pool):
        allowed = {**resources["limits"], **guaranteed["limits"]}
        resources = {"limits": allowed, "requests": allowed}
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
    # The ranks of one worker belong together; they would be spread like workers.
    wanted: Json = {"topologySpreadConstraints": spread} if pool.pods_per_worker == 1 else {}
    gpu = pool.declared.gpu
    if gpu is None:
        return wanted
    # Nodes with devices are commonly tainted with the resource's name.
    wanted["tolerations"] = [{"key": gpu.resource, "operator": "Exists", "effect": "NoSchedule"}]
    if gpu.type:
        wanted["nodeSelector"] = {gpu.type_label: gpu.type}
    return wanted
