"""What kopf watches, and whom it wakes: every event ends in one question to the reconciler.

kopf lists, watches, resumes and logs in; it keeps no state in objects here, since handlers of plain
events need none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from twolane.operator.names import GROUP, MANAGER, MODEL_LABEL, VERSION
from twolane.operator.stateless import NoDifferences, NoProgress

Ask = Callable[[tuple[str, str]], Awaitable[None]]

_OWNED = (
    (GROUP, VERSION, "workerpools"),
    ("apps", "v1", "deployments"),
    ("apps", "v1", "statefulsets"),
    ("", "v1", "services"),
    ("", "v1", "pods"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "networkpolicies"),
)


def registry(ask: Ask) -> kopf.OperatorRegistry:
    """Handlers that tell `ask` which ModelDeployment to look at."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(kopf.login_via_client)

    async def own(namespace: str | None, name: str | None, **_: Any) -> None:
        """A ModelDeployment changed."""
        await ask((str(namespace), str(name)))

    async def owned(namespace: str | None, labels: Any, **_: Any) -> None:
        """Something made for a ModelDeployment changed."""
        await ask((str(namespace), str(labels[MODEL_LABEL])))

    kopf.on.event(GROUP, VERSION, "modeldeployments", registry=handlers)(own)
    for group, version, plural in _OWNED:
        watch = kopf.on.event(group, version, plural, registry=handlers, labels={MODEL_LABEL: kopf.PRESENT})
        watch(owned)
    return handlers


def settings() -> kopf.OperatorSettings:
    """How kopf watches: only what is ours, with a deadline on every connection."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.persistence.diffbase_storage = NoDifferences()
    chosen.persistence.progress_storage = NoProgress()
    chosen.process.ultimate_exiting_timeout = None
    # Which kinds and namespaces there are is fixed at the start; looking for new ones takes rights.
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.watching.server_timeout = 290
    chosen.watching.client_timeout = 300
    chosen.watching.connect_timeout = 10
    chosen.watching.chunk_size = 500
    chosen.watching.reconnect_backoff = 1
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    chosen.networking.enforce_retry_after = True
    # The API server may be away for long; giving up would only mean to start again.
    chosen.networking.error_backoffs = [1, 2, 3, 5, 8, *[10] * 360]
    for group, version, plural in _OWNED:
        selector = f"app.kubernetes.io/managed-by={MANAGER},{MODEL_LABEL}"
        chosen.watching.label_selectors[group, version, plural] = selector
    return chosen
