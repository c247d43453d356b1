"""Secrets and Certificates of one ModelDeployment's processes, and how pods mount them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta

from twolane.operator.names import COMPONENT_LABEL, Component, Owner
from twolane.operator.resources.shape import Json
from twolane.operator.resources.tls import Tls
from twolane.rpc.identity import dns_name

FOLDER = "/etc/twolane/tls"
_VOLUME = "certificates"
RENEWED_AT = 1 / 3
"""Share of its life that a certificate has left when it is renewed."""


def deployment_name(owner: Owner) -> str:
    """The part of the names in certificates that all processes of a ModelDeployment share."""
    return f"{owner.name}.{owner.namespace}.svc"


def authority_secret(owner: Owner) -> str:
    """Name of the Secret with the operator's authority for one ModelDeployment; no pod mounts it."""
    return f"{owner.name}-tls-authority"


def certificate_secret(owner: Owner, tls: Tls, component: Component) -> str:
    """Name of the Secret that the pods of a component mount.

    Each mode has names of its own: pods of before and after a change of mode run side by side for a while.
    """
    return f"{owner.name}-{'tls' if tls.mode == 'operator' else 'cert'}-{component}"


def certificate_volume(
    owner: Owner, tls: Tls, component: Component
) -> tuple[list[Json], list[Json], list[str]]:
    """Volumes, mounts and flags of a pod."""
    if tls.mode == "disabled":
        return [], [], []
    secret = {"secretName": certificate_secret(owner, tls, component), "defaultMode": 0o440}
    mount = {"name": _VOLUME, "mountPath": FOLDER, "readOnly": True}
    return [{"name": _VOLUME, "secret": secret}], [mount], ["--tls-dir", FOLDER]


def secret(owner: Owner, name: str, kind: str, data: Mapping[str, bytes]) -> Json:
    """A Secret of ours."""
    metadata = owner.metadata(name)
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": encoded}


def cert_manager_certificate(owner: Owner, tls: Tls, component: Component) -> Json:
    """What cert-manager is asked for; it keeps the Secret of the same name in step."""
    assert tls.cert_manager is not None, "the schema wants an issuer"
    name, issuer = certificate_secret(owner, tls, component), tls.cert_manager.issuer_ref
    lifetime = timedelta(days=tls.certificate_days)
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": owner.metadata(name, **{COMPONENT_LABEL: component}),
        "spec": {
            "secretName": name,
            "secretTemplate": {"labels": owner.labels()},
            "dnsNames": [dns_name(component, deployment_name(owner))],
            "duration": _hours(lifetime),
            "renewBefore": _hours(lifetime * RENEWED_AT),
            "usages": ["digital signature", "server auth", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
        },
    }


def _hours(span: timedelta) -> str:
    """As Go writes a duration, so that what the API server keeps is what was asked for."""
    return f"{round(span.total_seconds() / 3600)}h0m0s"
