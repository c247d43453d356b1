"""What has to be issued, decided from Secrets of dictionaries while years pass in a moment."""

from __future__ import annotations

import asyncio
import base64
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from tests.operator.objects import World, model_deployment
from twolane.operator.build.certificates import RENEWED_AT, cert_manager_certificate
from twolane.operator.certificate_keeper import CertificateKeeper, Rights
from twolane.operator.certificates import OVERLAP, decide, read_authority, read_issued
from twolane.operator.cluster import ClusterError
from twolane.operator.names import Component, Owner
from twolane.operator.observed import Certificates, Observed
from twolane.operator.resources.shape import Json
from twolane.operator.resources.tls import CertManager, IssuerRef, Tls
from twolane.rpc.identity import COMPONENTS

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OWNER = Owner("demo", "team", "u-1")
DAY = timedelta(days=1)


class Shelf:
    """An API server that holds Secrets and Certificates, and counts what was written."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Json] = {}
        self.written: list[str] = []
        self.error: ClusterError | None = None

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """See Cluster."""
        if self.error is not None:
            raise self.error
        assert namespace == "team"
        return copy.deepcopy(self.objects.get((kind, name)))

    async def apply(self, body: Json) -> Json:
        """See Cluster."""
        self.written.append(body["metadata"]["name"])
        key = (body["kind"], body["metadata"]["name"])
        status = self.objects.get(key, {}).get("status", {})
        self.objects[key] = copy.deepcopy(body) | {"status": status}
        return self.objects[key]

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """See Cluster."""
        self.objects.pop((kind, name), None)

    def secret(self, name: str) -> Json:
        """One Secret."""
        return self.objects["Secret", name]


class Model:
    """One ModelDeployment and its keeper under a clock of the test's own."""

    def __init__(self, rights: Rights = Rights(True, True), **tls: Any) -> None:  # noqa: B008
        self.shelf = Shelf()
        self.world = World(model_deployment(tls=tls))
        self.keeper = CertificateKeeper(self.shelf, rights)  # type: ignore[arg-type]
        self.now = START

    def look(self, children: dict[tuple[str, str], Json] | None = None) -> Certificates:
        """One reconciliation; its status is written."""
        observed = Observed(copy.deepcopy(self.world.md), children or {}, (), self.now)
        kept = asyncio.run(self.keeper.keep(observed))
        assert kept is not None
        self.world.md["status"] = {"certificates": kept.status}
        return kept


def _days_left(secret: Json, now: datetime) -> float:
    issued = read_issued(secret)
    assert issued is not None
    return (issued.certificate.ends - now) / DAY


def test_an_authority_and_a_certificate_for_each_component() -> None:
    """With the names that processes look for; only pods' Secrets hold what pods need."""
    model = Model(mode="operator")
    kept = model.look()
    assert model.shelf.written == ["demo-tls-authority", *(f"demo-tls-{name}" for name in COMPONENTS)]
    assert (kept.condition.status, kept.condition.reason) == ("True", "Issued")
    assert kept.status == {"mode": "operator", "ends": "2026-02-01T03:04:05Z"}
    worker = model.shelf.secret("demo-tls-worker")
    assert worker["type"] == "kubernetes.io/tls"
    assert sorted(worker["data"]) == ["ca.crt", "tls.crt", "tls.key"]
    assert worker["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    issued, authority = read_issued(worker), read_authority(model.shelf.secret("demo-tls-authority"))
    assert issued is not None
    assert authority is not None
    assert issued.certificate.names == ("worker.demo.team.svc",)
    assert issued.trusted == authority.trusted
    assert "PRIVATE" not in repr(kept)


def test_nothing_is_written_until_something_is_due() -> None:
    """Certificates when a third of their life is left, the authority stays."""
    model = Model(mode="operator", certificateDays=30)
    model.look()
    authority = model.shelf.secret("demo-tls-authority")
    model.shelf.written.clear()
    model.now += 30 * DAY * (1 - RENEWED_AT) - DAY
    model.look()
    assert model.shelf.written == []
    model.now += 2 * DAY
    model.look()
    assert sorted(model.shelf.written) == sorted(f"demo-tls-{name}" for name in COMPONENTS)
    assert model.shelf.secret("demo-tls-authority") == authority
    assert _days_left(model.shelf.secret("demo-tls-router"), model.now) == pytest.approx(30)


def test_a_new_authority_is_trusted_before_it_signs_and_the_old_one_after() -> None:
    """At every moment, whoever holds the files of the step before trusts whoever holds those after it."""
    model = Model(mode="operator", authorityDays=90, certificateDays=30)
    held: list[dict[Component, Any]] = []
    turns = []
    for _ in range(2000):
        # Pods that see a Secret late have what was there before.
        before = {
            name: read_issued(model.shelf.objects.get(("Secret", f"demo-tls-{name}"))) for name in COMPONENTS
        }
        wrote = len(model.shelf.written)
        kept = model.look()
        if len(model.shelf.written) > wrote:
            if "demo-tls-authority" in model.shelf.written[wrote:]:
                turns.append(model.now)
            after = {n: read_issued(model.shelf.secret(f"demo-tls-{n}")) for n in COMPONENTS}
            held.append(after)
            for one in (before, after):
                for other in (before, after):
                    for name in COMPONENTS:
                        mine, theirs = one[name], other["worker"]
                        if mine is not None and theirs is not None:
                            assert theirs.certificate.signer_id in mine.trusted
        for issued in (read_issued(model.shelf.secret(f"demo-tls-{name}")) for name in COMPONENTS):
            assert issued is not None
            assert issued.certificate.ends > model.now
        model.now += timedelta(seconds=kept.look_again_s or 21600)
        if len(turns) == 7:
            break
    # Made, and twice: announced, turned, retired.
    assert len(turns) == 7
    assert turns[1] - turns[0] == pytest.approx(60 * DAY, abs=DAY)
    assert all(turns[i + 1] - turns[i] >= OVERLAP for i in range(6))
    signers = [after["worker"].certificate.signer_id for after in held]
    assert len(set(signers)) == 3


@pytest.mark.parametrize(
    "harm", ["gone", "garbage", "renamed", "strange authority", "authority gone", "authority's key"]
)
def test_what_hands_break_is_issued_again(harm: str) -> None:
    """A Secret that no process could use."""
    model, other = Model(mode="operator"), Model(mode="operator")
    model.look()
    other.look()
    secrets = model.shelf.objects
    match harm:
        case "gone":
            del secrets["Secret", "demo-tls-broker"]
        case "garbage":
            secrets["Secret", "demo-tls-broker"]["data"]["tls.crt"] = "Z2FyYmFnZQ=="
        case "renamed":
            secrets["Secret", "demo-tls-broker"]["data"] = secrets["Secret", "demo-tls-router"]["data"]
        case "strange authority":
            secrets["Secret", "demo-tls-broker"]["data"] = other.shelf.secret("demo-tls-broker")["data"]
        case "authority gone":
            del secrets["Secret", "demo-tls-authority"]
        case _:
            foreign = secrets["Secret", "demo-tls-broker"]["data"]["tls.key"]
            secrets["Secret", "demo-tls-authority"]["data"]["tls.key"] = foreign
    model.look()
    authority = read_authority(model.shelf.secret("demo-tls-authority"))
    issued = {name: read_issued(model.shelf.secret(f"demo-tls-{name}")) for name in COMPONENTS}
    work = decide(OWNER, Tls(mode="operator"), authority, issued, model.now)
    assert (work.turn, work.components) == (None, ())


def test_a_secret_of_somebody_else_is_not_taken() -> None:
    """The status says which one is in the way, and nothing is written."""
    model = Model(mode="operator")
    model.shelf.objects["Secret", "demo-tls-worker"] = {"metadata": {"name": "demo-tls-worker"}, "data": {}}
    kept = model.look()
    assert (kept.condition.status, kept.condition.reason) == ("False", "Refused")
    assert "Secret demo-tls-worker exists and does not belong" in kept.condition.message
    assert model.shelf.written == []


@pytest.mark.parametrize(
    ("tls", "value"),
    [
        ({"mode": "operator"}, "tls.secrets=true"),
        ({"mode": "certManager", "certManager": {"issuerRef": {"name": "ca"}}}, "tls.certManager=true"),
    ],
)
def test_rights_that_were_not_granted_are_not_tried(tls: dict[str, Any], value: str) -> None:
    """The status names the value of the chart."""
    model = Model(Rights(), **tls)
    model.shelf.error = ClusterError("never asked", status=403)
    kept = model.look()
    assert (kept.condition.status, kept.condition.reason) == ("False", "NotGranted")
    assert value in kept.condition.message


def test_cert_manager_is_asked_and_believed() -> None:
    """The operator reads no Secret; the words of cert-manager are in the status."""
    model = Model(Rights(cert_manager=True), mode="certManager", certManager={"issuerRef": {"name": "ca"}})
    kept = model.look()
    assert kept.condition.reason == "WaitingForCertManager"
    assert model.shelf.written == [f"demo-cert-{name}" for name in COMPONENTS]
    assert {kind for kind, _ in model.shelf.objects} == {"Certificate"}
    for body in model.shelf.objects.values():
        body["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    broker = model.shelf.objects["Certificate", "demo-cert-broker"]
    broker["status"]["conditions"][0] |= {"status": "False", "message": "issuer ca not found"}
    kept = model.look()
    assert kept.condition.message == "Certificate demo-cert-broker: issuer ca not found"
    broker["status"]["conditions"][0]["status"] = "True"
    assert model.look().condition.status == "True"
    # What a hand changes is set back, and only that.
    model.shelf.written.clear()
    broker["spec"]["duration"] = "1h0m0s"
    model.look()
    assert model.shelf.written == ["demo-cert-broker"]


def test_a_certificate_for_cert_manager_is_complete() -> None:
    """Keys change with every renewal, and durations stand as the API server keeps them."""
    tls = Tls(
        mode="certManager", cert_manager=CertManager(issuer_ref=IssuerRef(name="ca", kind="ClusterIssuer"))
    )
    spec = cert_manager_certificate(OWNER, tls, "broker")["spec"]
    assert spec["dnsNames"] == ["broker.demo.team.svc"]
    assert (spec["duration"], spec["renewBefore"]) == ("720h0m0s", "240h0m0s")
    assert spec["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert spec["privateKey"]["rotationPolicy"] == "Always"


def test_what_an_earlier_mode_made_goes_when_nobody_mounts_it() -> None:
    """Pods of both modes run beside each other while a rollout lasts."""
    model = Model(mode="operator")
    model.look()
    volume = {"name": "certificates", "secret": {"secretName": "demo-tls-worker"}}
    pods = {"spec": {"template": {"spec": {"volumes": [volume]}}}}
    children = {("Deployment", "demo-decode-1"): pods}
    model.world.md["spec"]["tls"] = {"mode": "disabled"}
    kept = model.look(children)
    assert kept.status["leaving"] == ["operator"]
    assert len(model.shelf.objects) == 4
    # Still kept valid.
    model.now += 25 * DAY
    model.look(children)
    assert _days_left(model.shelf.secret("demo-tls-worker"), model.now) == pytest.approx(30)
    model.look({})
    assert model.shelf.objects == {}
    observed = Observed(model.world.md, {}, (), model.now)
    assert asyncio.run(model.keeper.keep(observed)) is None


def test_pods_mount_their_own_secret_and_get_the_flag() -> None:
    """Each component its own; a change of mode is a new revision, a renewal is none."""
    world = World(model_deployment(tls={"mode": "operator"}))
    world.settle()
    for name, component in (("demo-router", "router"), ("demo-broker", "broker"), ("demo-decode", "worker")):
        spec = world.deployment(name)["spec"]["template"]["spec"]
        [container] = spec["containers"]
        assert container["args"][-2:] == ["--tls-dir", "/etc/twolane/tls"]
        [volume] = [each for each in spec["volumes"] if each["name"] == "certificates"]
        assert volume["secret"]["secretName"] == f"demo-tls-{component}"
    plain = World(model_deployment())
    plain.settle()
    assert "--tls-dir" not in str(plain.children)
    assert plain.md["status"]["revision"] != world.md["status"]["revision"]


def test_authorities_can_sign_no_further_authority() -> None:
    """A stolen certificate signs nothing."""
    model = Model(mode="operator")
    model.look()
    for name, can_sign in (("demo-tls-authority", True), ("demo-tls-worker", False)):
        pem = base64.b64decode(model.shelf.secret(name)["data"]["tls.crt"])
        made = x509.load_pem_x509_certificate(pem)
        limits = made.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert limits.ca is can_sign
        assert limits.path_length == (0 if can_sign else None)
