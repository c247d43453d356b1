"""The front door: a few lines of YAML, and an OpenAI client streams an answer through the Service."""

from __future__ import annotations

import openai
import pytest

from tests.node.load import stream
from tests.node.product import COMPONENT, DECLARATION, Model

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]


def test_ten_lines_serve_an_openai_client(chat: Model) -> None:
    """kubectl get md shows that it serves, and where; the answer comes as a stream."""
    assert len(DECLARATION.splitlines()) == 10
    [line] = chat.kube.kubectl("get", "md", "-n", chat.namespace, "--no-headers").splitlines()
    assert line.split()[:5] == ["chat", "True", "Serving", "1/1", "1/1"]
    with openai.OpenAI(base_url=chat.url(), api_key="none", max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list()] == ["chat"]
        text = stream(client, "chat", "Tell me about the sea.", tokens=32)
    assert len(text.split()) > 3


def test_pods_are_confined(chat: Model) -> None:
    """No root, no writable root, no capabilities; the namespace would refuse anything else."""
    probe = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    components = ("router", "broker", "worker")
    for component in components:
        name = chat.pods(f"{COMPONENT}={component}")[0]["metadata"]["name"]
        in_pod = ("exec", name, "-n", chat.namespace, "--")
        assert chat.kube.kubectl(*in_pod, "python", "-c", probe).split() == ["65532", "0" * 16]
        with pytest.raises(Exception, match="Read-only file system"):
            chat.kube.kubectl(*in_pod, "python", "-c", "open('/x', 'w')")


def test_prompt_and_answer_are_computed_on_two_workers(chat: Model) -> None:
    """Pages travel between pods; the log of each says which part it had."""
    with openai.OpenAI(base_url=chat.url(), api_key="none", max_retries=0, timeout=60) as client:
        stream(client, "chat", "Write a story about a river.")
    [prefill] = chat.pods("serving.twolane.dev/pool=prefill")
    log = chat.kube.kubectl("logs", prefill["metadata"]["name"], "-n", chat.namespace)
    assert '"outcome": "handed_over"' in log
