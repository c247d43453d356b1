"""Who a process is by its certificate: `<component>.<deployment>`, for example `worker.chat.team.svc`.

Issuers write these names, dialers ask for them and servers check them: two deployments can't talk to each
other even where one authority has signed for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Component = Literal["router", "worker", "broker"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


def dns_name(component: Component, deployment: str) -> str:
    """The name in the certificate of a deployment's component."""
    return f"{component}.{deployment}"


def deployment_of(names: Iterable[str]) -> str | None:
    """The deployment that a certificate with these names is for; None when no name has our form."""
    for name in names:
        component, _, deployment = name.partition(".")
        if component in COMPONENTS and deployment:
            return deployment
    return None
