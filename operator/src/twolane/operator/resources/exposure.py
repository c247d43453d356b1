"""How routers are reached from outside and how many there are; a part of `spec.router`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from twolane.operator.resources.shape import Json, Shape
from twolane.operator.resources.sources import Name

Path = Annotated[str, Field(pattern=r"^/.*$")]


class RouterIngress(Shape):
    """An Ingress in front of the routers."""

    hosts: Annotated[tuple[str, ...], Field(min_length=1, max_length=16, strict=False)]
    class_name: str = ""
    path: Path = "/"
    tls_secret_name: str = ""
    annotations: dict[str, str] = Field(default={})


class ParentRef(Shape):
    """A Gateway, or one of its listeners."""

    name: Name
    namespace: Name | None = None
    section_name: Name | None = None


class HttpRoute(Shape):
    """A route of the Gateway API to the routers."""

    parent_refs: Annotated[tuple[ParentRef, ...], Field(min_length=1, max_length=16, strict=False)]
    hostnames: Annotated[tuple[str, ...], Field(max_length=16, strict=False)] = ()
    path: Path = "/"
    annotations: dict[str, str] = Field(default={})


class RouterAutoscaling(Shape):
    """Bounds and target of the routers' HorizontalPodAutoscaler."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    target_cpu_percent: Annotated[int, Field(ge=1, le=1000)] = 60


class Peer(Shape):
    """Who may reach the routers, as a NetworkPolicy names them."""

    namespace_selector: Json | None = None
    pod_selector: Json | None = None
    ip_block: Json | None = None
