"""Keeps the certificates of ModelDeployments: reads what there is, issues what is due, says how it stands.

The reconciler asks it before it plans, so that a pod's Secret is there before the pod. It alone reads
Secrets, by name and only those it makes; nothing of a key leaves it but to the API server.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from twolane.operator.build.certificates import (
    authority_secret,
    cert_manager_certificate,
    certificate_secret,
    deployment_name,
    secret,
)
from twolane.operator.certificates import (
    Issued,
    Turn,
    Work,
    decide,
    read_authority,
    read_issued,
)
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.conditions import Condition, timestamp
from twolane.operator.drift import reason_to_apply, sealed
from twolane.operator.names import Component, Owner, owner_of
from twolane.operator.observe import owned_by
from twolane.operator.observed import Certificates, Observed
from twolane.operator.resources.model_deployment import read_spec
from twolane.operator.resources.shape import Json
from twolane.operator.resources.tls import Mode, Tls
from twolane.rpc.identity import COMPONENTS, dns_name
from twolane.rpc.issuing import KeyPair, issue, make_authority

log = logging.getLogger(__name__)

KIND = "CertificatesReady"
LOOK_AGAIN_S = 10.0
"""How soon Certificates of cert-manager are looked at again that are not ready; nobody watches them."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the operator was installed to do; each needs rights of its own."""

    secrets: bool = False
    cert_manager: bool = False


class CertificateKeeper:
    """Certificates of all ModelDeployments."""

    def __init__(self, cluster: Cluster, rights: Rights) -> None:
        self._cluster = cluster
        self._rights = rights

    async def keep(self, observed: Observed) -> Certificates | None:
        """Issues what is due for one ModelDeployment; None for one whose processes need no certificates.

        Raises:
            ClusterError: the API server could not be asked; what it refuses for good is in the condition.
        """
        try:
            tls = read_spec(observed.model_deployment).tls
        except ValidationError:
            # The plan says what is wrong; what is mounted stays.
            return None
        owner, earlier = owner_of(observed.model_deployment), _earlier_modes(observed, tls)
        if observed.deleting or (tls.mode == "disabled" and not earlier):
            # What there is ends with the ModelDeployment.
            return None
        try:
            kept = await self._keep(owner, tls, observed.now)
            leaving = [mode for mode in earlier if not await self._forget(owner, tls, mode, observed)]
        except ClusterError as error:
            if not error.permanent:
                raise
            kept, leaving = _result("False", "Refused", str(error), tls), earlier
        return replace(kept, status={**kept.status, "leaving": leaving}) if leaving else kept

    async def _keep(self, owner: Owner, tls: Tls, now: datetime) -> Certificates:
        if tls.mode == "disabled":
            return _result("True", "Disabled", "processes speak plain text to each other")
        if tls.mode == "operator":
            if not self._rights.secrets:
                return _not_granted("tls.secrets", "make and read Secrets", tls)
            return await self._issue(owner, tls, now)
        if not self._rights.cert_manager:
            return _not_granted("tls.certManager", "make Certificates of cert-manager", tls)
        return await self._ask_cert_manager(owner, tls)

    async def _issue(self, owner: Owner, tls: Tls, now: datetime) -> Certificates:
        names = {component: certificate_secret(owner, tls, component) for component in COMPONENTS}
        asked = [authority_secret(owner), *names.values()]
        found = await asyncio.gather(*(self._own_secret(owner, name) for name in asked))
        issued = dict(zip(names, map(read_issued, found[1:]), strict=True))
        work = decide(owner, tls, read_authority(found[0]), issued, now)
        if work.turn is not None or work.components:
            issued |= await self._carry_out(owner, tls, work, found[0], now)
        ends = min(each.certificate.ends for each in issued.values() if each is not None)
        words = f"issued by the operator; the first of them ends {timestamp(ends)}"
        made = _result("True", "Issued", words, tls)
        return Certificates(
            made.condition, {**made.status, "ends": timestamp(ends)}, _seconds(work.look_again)
        )

    async def _carry_out(
        self, owner: Owner, tls: Tls, work: Work, found: Json | None, now: datetime
    ) -> dict[Component, Issued | None]:
        held = _decoded(found)
        if work.turn is not None:
            held = await self._turn(owner, tls, work.turn, found, now)
            log.info("authority: %s", work.turn.value, extra={"object": f"{owner.namespace}/{owner.name}"})
        authority = KeyPair(held["tls.crt"], held["tls.key"])
        trusted = b"".join(held[name] for name in ("tls.crt", "next.crt", "previous.crt") if name in held)
        made: dict[Component, Issued | None] = {}
        for component in work.components:
            lifetime = timedelta(days=tls.certificate_days)
            pair = issue(authority, [dns_name(component, deployment_name(owner))], now, lifetime)
            name = certificate_secret(owner, tls, component)
            data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": trusted}
            body = secret(owner, name, "kubernetes.io/tls", data)
            await self._cluster.apply(body)
            made[component] = read_issued(body)
        log.info(
            "certificates issued",
            extra={"object": f"{owner.namespace}/{owner.name}", "components": list(made)},
        )
        return made

    async def _turn(
        self, owner: Owner, tls: Tls, turn: Turn, found: Json | None, now: datetime
    ) -> dict[str, bytes]:
        """Takes one step of the authority and returns its Secret's data afterwards."""
        held = _decoded(found)
        lifetime = timedelta(days=tls.authority_days)
        match turn:
            case Turn.CREATE:
                made = make_authority(deployment_name(owner), now, lifetime)
                held = {"tls.crt": made.certificate, "tls.key": made.key}
            case Turn.ANNOUNCE:
                made = make_authority(deployment_name(owner), now, lifetime)
                held |= {"next.crt": made.certificate, "next.key": made.key}
            case Turn.TURN:
                held = {
                    "tls.crt": held["next.crt"],
                    "tls.key": held["next.key"],
                    "previous.crt": held["tls.crt"],
                }
            case Turn.RETIRE:
                held = {name: held[name] for name in ("tls.crt", "tls.key")}
        await self._cluster.apply(secret(owner, authority_secret(owner), "Opaque", held))
        return held

    async def _own_secret(self, owner: Owner, name: str) -> Json | None:
        found = await self._cluster.get("Secret", owner.namespace, name)
        if found is not None and not owned_by(found, owner.uid):
            raise _taken("Secret", name)
        return found

    async def _ask_cert_manager(self, owner: Owner, tls: Tls) -> Certificates:
        wanted = [sealed(cert_manager_certificate(owner, tls, component)) for component in COMPONENTS]
        troubles = []
        for body in wanted:
            name = body["metadata"]["name"]
            found = await self._cluster.get("Certificate", owner.namespace, name)
            if found is not None and not owned_by(found, owner.uid):
                raise _taken("Certificate", name)
            if reason_to_apply(found, body) is not None:
                found = await self._cluster.apply(body)
            troubles += _trouble(found or {}, name)
        if troubles:
            return Certificates(
                Condition(KIND, "False", "WaitingForCertManager", "; ".join(troubles)),
                {"mode": tls.mode},
                LOOK_AGAIN_S,
            )
        return _result("True", "Issued", "issued by cert-manager", tls)

    async def _forget(self, owner: Owner, tls: Tls, mode: Mode, observed: Observed) -> bool:
        """What an earlier mode made goes once no pod can mount it any more; until then it is kept valid."""
        old = tls.model_copy(update={"mode": mode})
        names = [certificate_secret(owner, old, component) for component in COMPONENTS]
        if _mounted(observed, names):
            if mode == "operator" and self._rights.secrets:
                await self._issue(owner, old, observed.now)
            return False
        if mode == "certManager" and self._rights.cert_manager:
            for name in names:
                await self._cluster.delete("Certificate", owner.namespace, name)
        if mode == "operator" and self._rights.secrets:
            for name in (*names, authority_secret(owner)):
                if await self._own_secret(owner, name) is not None:
                    await self._cluster.delete("Secret", owner.namespace, name)
        return True


def _earlier_modes(observed: Observed, tls: Tls) -> list[Mode]:
    """Modes whose certificates may still be there."""
    status = observed.model_deployment.get("status", {}).get("certificates", {})
    known = {status.get("mode"), *status.get("leaving", [])}
    modes: tuple[Mode, ...] = ("certManager", "operator")
    return [mode for mode in modes if mode in known and mode != tls.mode]


def _mounted(observed: Observed, names: list[str]) -> bool:
    templates = (child["spec"].get("template", {}) for child in observed.children.values() if "spec" in child)
    volumes = (volume for each in templates for volume in each.get("spec", {}).get("volumes", []))
    return any(volume.get("secret", {}).get("secretName") in names for volume in volumes)


def _decoded(found: Json | None) -> dict[str, bytes]:
    data = (found or {}).get("data") or {}
    return {name: base64.b64decode(value) for name, value in data.items()}


def _trouble(certificate: Json, name: str) -> list[str]:
    conditions = certificate.get("status", {}).get("conditions", [])
    ready = next((item for item in conditions if item["type"] == "Ready"), None)
    if ready is None:
        return [f"cert-manager has not looked at Certificate {name} yet"]
    return [] if ready["status"] == "True" else [f"Certificate {name}: {ready.get('message', 'not ready')}"]


def _taken(kind: str, name: str) -> ClusterError:
    words = f"{kind} {name} exists and does not belong to this ModelDeployment; rename or delete it"
    return ClusterError(words, status=422)


def _not_granted(value: str, what: str, tls: Tls) -> Certificates:
    words = f"this operator may not {what}: install its chart with {value}=true"
    return _result("False", "NotGranted", words, tls)


def _result(status: str, reason: str, message: str, tls: Tls | None = None) -> Certificates:
    condition = Condition(KIND, "True" if status == "True" else "False", reason, message)
    return Certificates(condition, {"mode": tls.mode} if tls is not None else {}, None)


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()
