"""Certificates by the operator under load: turned on by a rollout, renewed through kubelets, off again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node.product import COMPONENT, START_S, Model
from tests.operator.cluster.kube import Json, Refused, eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(1500)]
SECRETS = ("chat-tls-broker", "chat-tls-router", "chat-tls-worker")
# A kubelet looks at what it has mounted about once a minute, and has a cache.
MOUNTED_S = 240.0


@pytest.fixture
def plain(chat: Model) -> Iterator[Model]:
    """The model without certificates, before and after."""
    yield chat
    chat.patch(tls={"mode": "disabled"})
    # A whole rollout and its soak.
    eventually(lambda: _revisions(chat) == {chat.object()["status"]["revision"]}, 3 * START_S)


def _revisions(chat: Model) -> set[str]:
    return {pod["metadata"]["labels"]["serving.twolane.dev/revision"] for pod in chat.pods(COMPONENT)}


def _logs(chat: Model, pod: Json) -> str:
    return chat.kube.kubectl("logs", pod["metadata"]["name"], "-n", chat.namespace)


def _inspect(chat: Model, *flags: str) -> str:
    """`twolane inspect tls` in a router's pod."""
    [router, *_] = chat.pods(f"{COMPONENT}=router")
    command = ["twolane", "inspect", "tls", "--tls-dir", "/etc/twolane/tls", *flags]
    return chat.kube.kubectl("exec", router["metadata"]["name"], "-n", chat.namespace, "--", *command)


def test_certificates_are_turned_on_and_renewed_without_a_lost_request(plain: Model) -> None:
    """No pod restarts for a renewal, and strangers are kept out."""
    chat, kube = plain, plain.kube
    before = chat.object()["status"]["revision"]
    with chat.load() as load:
        load.wait_for(5)
        chat.patch(tls={"mode": "operator"})
        eventually(lambda: chat.object()["status"]["revision"] != before, START_S)
        eventually(lambda: _revisions(chat) == {chat.object()["status"]["revision"]}, 3 * START_S)
        load.wait_for(5)
        assert kube.condition(chat.namespace, chat.name, "CertificatesReady")["status"] == "True"
        pods = chat.pods(COMPONENT)
        names = {pod["metadata"]["name"] for pod in pods}

        broker = chat.pods(f"{COMPONENT}=broker")[0]["status"]["podIP"]
        assert "both sides accept each other" in _inspect(
            chat, "--address", f"{broker}:9200", "--component", "broker"
        )
        with pytest.raises(Refused):
            _inspect(chat, "--address", f"{broker}:9200", "--component", "worker")

        # What a renewal does, at once: the operator makes them anew, kubelets mount them.
        kube.kubectl("delete", "secret", *SECRETS, "-n", chat.namespace)
        kube.kubectl("annotate", "md", chat.name, "-n", chat.namespace, "look=again", "--overwrite")
        eventually(lambda: set(SECRETS) <= set(kube.names(chat.namespace, "secrets")), START_S)
        for pod in pods:
            eventually(lambda pod=pod: "certificates read again" in _logs(chat, pod), MOUNTED_S)  # type: ignore[misc]
        load.wait_for(5)
        after = chat.pods(COMPONENT)
        assert {pod["metadata"]["name"] for pod in after} == names
        assert all(
            status["restartCount"] == 0 for pod in after for status in pod["status"]["containerStatuses"]
        )
    load.expect_no_failure()
