"""Router and broker of one revision, and the Services in front of them."""

from __future__ import annotations

from twolane.operator.build.flags import flag, telemetry_flags
from twolane.operator.build.model_volume import model_volume, secret_env
from twolane.operator.build.overlay import overlay
from twolane.operator.build.pods import PodPlan, pod_template, resources_of
from twolane.operator.names import (
    BROKER_PORT,
    COMPONENT_LABEL,
    PROBE_PORT,
    REVISION_LABEL,
    ROUTER_GRPC_PORT,
    ROUTER_HTTP_PORT,
    Owner,
)
from twolane.operator.planner_spec import shares_workers
from twolane.operator.resources.model_deployment import (
    LaneTarget,
    ModelDeploymentSpec,
    Scaling,
    Slo,
)
from twolane.operator.resources.shape import Json

_KEYS_FOLDER = "/etc/twolane/api-keys"


def broker_address(owner: Owner, revision: str) -> str:
    """host:port of one revision's broker; workers of another revision never learn it."""
    return f"{owner.broker(revision)}.{owner.namespace}.svc:{BROKER_PORT}"


def router_url(owner: Owner) -> str:
    """Base address for OpenAI clients inside the cluster."""
    return f"http://{owner.name}.{owner.namespace}.svc:{ROUTER_HTTP_PORT}/v1"


def broker_template(owner: Owner, spec: ModelDeploymentSpec, image: str, revision: str) -> Json:
    """The pods of one revision's broker."""
    args = ["broker", "--host", "0.0.0.0", "--port", str(BROKER_PORT), "--http-port", str(PROBE_PORT)]  # noqa: S104
    if shares_workers(spec):
        args.append("--role-control")
    redis = spec.broker.redis
    if redis is not None:
        # Revisions and ModelDeployments may share a Redis; their workers must not meet in it.
        args += ["--redis-namespace", f"{owner.namespace}/{owner.name}/{revision}"]
    plan = PodPlan(
        component="broker",
        image=image,
        args=[*args, *telemetry_flags(spec)],
        ports={"grpc": BROKER_PORT, "http": PROBE_PORT},
        env=[] if redis is None else [secret_env("TWOLANE_BROKER_REDIS_URL", redis.secret_name, redis.key)],
        resources=resources_of(spec.broker.resources),
    )
    return overlay(pod_template(owner, spec, plan), spec.pod_template, spec.broker.pod_template)


def router_template(owner: Owner, spec: ModelDeploymentSpec, image: str, broker: str) -> Json:
    """The pods of the routers that follow the broker at `broker`."""
    model = model_volume(spec.model, weights=False)
    args = ["router", "--model-dir", model.model_dir, "--served-model-name", spec.model.name or owner.name]
    args += ["--router-id", "$(POD_NAME)", "--broker", broker, "--host", "0.0.0.0"]  # noqa: S104
    args += ["--port", str(ROUTER_HTTP_PORT), "--grpc-port", str(ROUTER_GRPC_PORT)]
    args += ["--drain-timeout-s", str(spec.drain.timeout_seconds), *_router_flags(spec)]
    volumes, mounts = _key_volume(spec)
    plan = PodPlan(
        component="router",
        image=image,
        args=[*args, *telemetry_flags(spec)],
        ports={"http": ROUTER_HTTP_PORT, "grpc": ROUTER_GRPC_PORT},
        model=model,
        volumes=volumes,
        mounts=mounts,
        resources=resources_of(spec.router.resources),
    )
    template = pod_template(owner, spec, plan)
    selector = {"matchLabels": owner.labels() | {COMPONENT_LABEL: "router"}}
    template["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
        }
    ]
    return overlay(template, spec.pod_template, spec.router.pod_template)


def _router_flags(spec: ModelDeploymentSpec) -> list[str]:
    router, engine = spec.router, spec.engine
    wishes = {
        "placement": router.placement,
        "max_waiting": router.max_waiting,
        "request_timeout_s": router.request_timeout_seconds,
        "short_max_uncached_tokens": engine and engine.short_max_uncached_tokens,
        "max_model_len": engine and engine.max_model_len,
        **_slo_wishes(spec.slo),
        **_hold_wishes(spec.scaling),
    }
    flags = [part for name, value in wishes.items() if value is not None for part in (flag(name), str(value))]
    if spec.api_keys is not None:
        flags += ["--api-keys-file", f"{_KEYS_FOLDER}/{spec.api_keys.key}"]
    return flags


def _slo_wishes(slo: Slo | None) -> dict[str, int | None]:
    if slo is None:
        return {}
    short, long = slo.short or LaneTarget(), slo.long or LaneTarget()
    return {
        "ttft_slo_ms": slo.ttft_ms,
        "tpot_slo_ms": slo.tpot_ms,
        "short_ttft_slo_ms": short.ttft_ms,
        "short_tpot_slo_ms": short.tpot_ms,
        "long_ttft_slo_ms": long.ttft_ms,
        "long_tpot_slo_ms": long.tpot_ms,
    }


def _hold_wishes(scaling: Scaling | None) -> dict[str, int | None]:
    if scaling is None or scaling.scale_to_zero is None:
        return {}
    return {"hold_s": scaling.scale_to_zero.hold_seconds, "max_held": scaling.scale_to_zero.max_held}


def _key_volume(spec: ModelDeploymentSpec) -> tuple[list[Json], list[Json]]:
    if spec.api_keys is None:
        return [], []
    secret = {"secretName": spec.api_keys.secret_name, "defaultMode": 0o440}
    mount = {"name": "api-keys", "mountPath": _KEYS_FOLDER, "readOnly": True}
    return [{"name": "api-keys", "secret": secret}], [mount]


def router_service(owner: Owner, spec: ModelDeploymentSpec) -> Json:
    """The address of the model. It selects the routers of every revision; a router is ready, and so
    gets requests, once workers of its own revision can serve them."""
    metadata = owner.metadata(owner.name, **{COMPONENT_LABEL: "router"})
    if spec.router.service.annotations:
        metadata["annotations"] = dict(spec.router.service.annotations)
    ports = {"http": ROUTER_HTTP_PORT, "grpc": ROUTER_GRPC_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.router.service.type,
            "selector": owner.labels() | {COMPONENT_LABEL: "router"},
            "ports": [_port(name, number) for name, number in ports.items()],
        },
    }


def broker_service(owner: Owner, revision: str) -> Json:
    """The address of one revision's broker."""
    labels = {COMPONENT_LABEL: "broker", REVISION_LABEL: revision}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(owner.broker(revision), **labels),
        "spec": {
            "type": "ClusterIP",
            "selector": owner.labels() | labels,
            "ports": [_port("grpc", BROKER_PORT)],
        },
    }


def _port(name: str, number: int) -> Json:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
