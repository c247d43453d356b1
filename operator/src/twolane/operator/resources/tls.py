"""The `tls` part of a ModelDeployment: how its processes know each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twolane.operator.resources.shape import Shape
from twolane.operator.resources.sources import Name

Mode = Literal["disabled", "operator", "certManager"]


class IssuerRef(Shape):
    """The issuer of cert-manager that signs."""

    name: Name
    kind: Name = "Issuer"
    group: Name = "cert-manager.io"


class CertManager(Shape):
    """What cert-manager is asked for."""

    issuer_ref: IssuerRef


class Tls(Shape):
    """Mutual TLS between routers, broker and workers."""

    mode: Mode = "disabled"
    certificate_days: Annotated[int, Field(ge=1, le=365)] = 30
    authority_days: Annotated[int, Field(ge=3, le=3650)] = 365
    cert_manager: CertManager | None = None
