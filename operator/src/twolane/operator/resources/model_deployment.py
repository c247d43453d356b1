"""ModelDeployment: what a user declares, as the operator reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twolane.operator.resources.exposure import HttpRoute, Peer, RouterAutoscaling, RouterIngress
from twolane.operator.resources.pools import (
    Count,
    Engine,
    PodTemplate,
    Pool,
    Pools,
    Positive,
    Prefill,
    Resources,
)
from twolane.operator.resources.shape import Json, Shape
from twolane.operator.resources.sources import Model, Name, PullPolicy
from twolane.operator.resources.tls import Tls

Seconds = Annotated[int, Field(ge=60)]


class PullSecret(Shape):
    """A Secret with registry credentials."""

    name: Name


class RouterService(Shape):
    """The Service that clients reach."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: dict[str, str] = Field(default={})


class Router(Shape):
    """The front that clients talk to."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    placement: (
        Literal["least_wait", "least_uncached", "least_loaded", "power_of_two", "round_robin"] | None
    ) = None
    max_waiting: Positive | None = None
    request_timeout_seconds: Positive | None = None
    service: RouterService = RouterService()
    ingress: RouterIngress | None = None
    http_route: HttpRoute | None = None
    autoscaling: RouterAutoscaling | None = None
    resources: Resources | None = None
    pod_template: PodTemplate | None = None


class Redis(Shape):
    """Where the URL of the broker's Redis is kept."""

    secret_name: Name
    key: Name = "url"


class Broker(Shape):
    """The control plane of KV transfer."""

    replicas: Annotated[int, Field(ge=1, le=16)] = 1
    redis: Redis | None = None
    resources: Resources | None = None
    pod_template: PodTemplate | None = None


class LaneTarget(Shape):
    """Latency targets of one lane."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None


class Slo(LaneTarget):
    """Latency targets; a lane's own goes before the general one."""

    short: LaneTarget | None = None
    long: LaneTarget | None = None
    goal: Annotated[float, Field(ge=0.5, le=0.999)] = 0.99


class Ratio(Shape):
    """Bounds of prefill workers for each decode worker."""

    min_prefill_per_decode: Annotated[float, Field(ge=0)] | None = None
    max_prefill_per_decode: Annotated[float, Field(ge=0)] | None = None


class ScaleToZero(Shape):
    """Ends all workers of an idle model; routers hold what comes until workers run again."""

    after_idle_seconds: Seconds = 1800
    hold_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    max_held: Positive = 256


class Cooldown(Shape):
    """Pauses between two decisions about a pool."""

    up_seconds: Count = 30
    down_seconds: Count = 300


class ScheduleEntry(Shape):
    """A least count at given times."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    cron: Annotated[str, Field(pattern=r"^(\S+\s+){4}\S+$")]
    time_zone: Name = "UTC"
    duration_seconds: Seconds = 3600
    pool: Literal["prefill", "prefill-short", "prefill-long", "decode", "mixed"]
    min_replicas: Count


class Scaling(Shape):
    """How the operator's planner scales pools together; without it the counts are whoever's scales them."""

    ratio: Ratio | None = None
    scale_to_zero: ScaleToZero | None = None
    cooldown: Cooldown | None = None
    schedule: Annotated[tuple[ScheduleEntry, ...], Field(max_length=32, strict=False)] = ()


class ApiKeys(Shape):
    """Where the keys that clients must send are kept."""

    secret_name: Name
    key: Name = "keys"


class Tracing(Shape):
    """Where spans go."""

    endpoint: Name
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1


class Rollback(Shape):
    """When a new revision has failed, so that the old one serves again."""

    enabled: bool = True
    max_error_percent: Annotated[int, Field(ge=0, le=100)] = 10
    min_requests: Positive = 20
    soak_seconds: Annotated[int, Field(ge=0, le=86400)] = 60


class Rollout(Shape):
    """How a new revision replaces the old one."""

    strategy: Literal["Rolling", "Recreate"] = "Rolling"
    max_surge: Positive = 1
    progress_deadline_seconds: Seconds = 1800
    rollback: Rollback = Rollback()


class Drain(Shape):
    """How processes end."""

    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    pre_stop_seconds: Annotated[int, Field(ge=0, le=120)] = 5


class NetworkPolicy(Shape):
    """Whether only routers and workers of this model may reach workers and broker, and who routers."""

    enabled: bool = True
    clients: Annotated[tuple[Peer, ...], Field(max_length=32, strict=False)] = ()


class ModelDeploymentSpec(Shape):
    """The spec of a ModelDeployment."""

    image: Name | None = None
    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: Annotated[tuple[PullSecret, ...], Field(max_length=16, strict=False)] = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    model: Model
    engine: Engine | None = None
    pools: Pools = Pools(prefill=Prefill(shared=Pool()), decode=Pool())
    router: Router = Router()
    broker: Broker = Broker()
    slo: Slo | None = None
    scaling: Scaling | None = None
    api_keys: ApiKeys | None = None
    tracing: Tracing | None = None
    rollout: Rollout = Rollout()
    drain: Drain = Drain()
    network_policy: NetworkPolicy = NetworkPolicy()
    tls: Tls = Tls()
    pod_template: PodTemplate | None = None


def read_spec(model_deployment: Json) -> ModelDeploymentSpec:
    """The typed spec of an object from the API server.

    Raises:
        pydantic.ValidationError: the object was stored under another schema than this program knows.
    """
    return ModelDeploymentSpec.model_validate(model_deployment["spec"])
