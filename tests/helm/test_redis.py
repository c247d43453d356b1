"""The Redis of the chart: its container started as declared, its Secrets, and who may reach it."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml

from deploy.cluster.processes import free_ports
from tests.operator.cluster.kube import Refused
from tests.operator.cluster.operator_process import chart
from tests.operator.objects import IMAGE, model_deployment
from twolane.operator.build.front import broker_template
from twolane.operator.build.workers import pools_of, worker_template
from twolane.operator.config import OperatorConfig
from twolane.operator.names import Owner
from twolane.operator.resources.model_deployment import read_spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
Json = dict[str, Any]
BUNDLED = ("--set", "redis.mode=bundled")


def _of(bodies: list[Json], kind: str) -> list[Json]:
    return [b for b in bodies if b["kind"] == kind and b["metadata"]["name"].endswith("redis")]


def _secrets(*values: str) -> dict[str, Json]:
    return {
        body["metadata"]["namespace"]: body["stringData"] for body in _of(chart("serving", *values), "Secret")
    }


def _selects(selector: Json, labels: Json) -> bool:
    return bool(selector["matchLabels"].items() <= labels.items())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[int, str, psutil.Process]]:
    """The container's command on this machine, in folders of the test's own; port, password, process."""
    bodies = chart("serving", *BUNDLED)
    [container] = _of(bodies, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"]
    [secret] = _of(bodies, "Secret")
    password = secret["stringData"]["password"]
    [port] = free_ports(1)
    for folder in ("tmp", "data"):
        (tmp_path / folder).mkdir()
    words = [*container["command"], *container["args"]]
    words = [str(port) if word == "6379" else word for word in words]
    words = [word.replace("/tmp/", f"{tmp_path}/tmp/").replace("/data", f"{tmp_path}/data") for word in words]
    child = subprocess.Popen(words, env={**os.environ, "REDISCLI_AUTH": password}, stdout=subprocess.DEVNULL)
    yield port, password, psutil.Process(child.pid)
    child.terminate()
    assert child.wait(20) == 0


def _client(port: int, password: str) -> redis.Redis:
    deadline = time.monotonic() + 20
    while True:
        try:
            client = redis.Redis(port=port, password=password)
            client.ping()
            return client
        except redis.ConnectionError as error:
            if isinstance(error, redis.AuthenticationError) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_the_container_starts_as_declared_and_wants_its_password(
    running: tuple[int, str, psutil.Process], tmp_path: Path
) -> None:
    """One process, which gets the signals; the password stands in no argument and in no file of others."""
    port, password, process = running
    client = _client(port, password)
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert client.config_get("maxmemory")["maxmemory"] == str(256 << 20)
    assert "redis-server" in process.cmdline()[0]
    assert process.children() == []
    assert password not in " ".join(process.cmdline())
    assert stat.S_IMODE((tmp_path / "tmp" / "redis.conf").stat().st_mode) == 0o600
    with pytest.raises(redis.AuthenticationError):
        _client(port, "wrong")


def test_every_namespace_that_is_served_gets_the_address() -> None:
    """One password for all; Redis itself reads it in its own namespace."""
    found = _secrets(*BUNDLED, "--set", "watchNamespaces={a,b}", "--set", "redis.namespaces={c,a}")
    assert set(found) == {"serving", "a", "b", "c"}
    assert len({data["url"] for data in found.values()}) == 1
    assert [name for name, data in found.items() if "password" in data] == ["serving"]
    assert f":{found['serving']['password']}@twolane-redis.serving.svc:6379" in found["a"]["url"]


def test_an_external_redis_is_an_address_or_secrets_that_exist() -> None:
    """Neither is refused before anything is installed."""
    external = ("--set", "redis.mode=external")
    url = ("--set", "redis.external.url=redis://books:6379/0")
    assert _secrets(*external, *url)["serving"] == {"url": "redis://books:6379/0"}
    assert _secrets(*external, "--set", "redis.secretName=books") == {}
    assert _of(chart("serving", *external, *url), "StatefulSet") == []
    with pytest.raises(Refused, match="secretName"):
        chart("serving", *external)


def test_the_operator_hands_the_secret_to_brokers() -> None:
    """What the chart writes, the operator reads."""
    for values, expected in (((), None), (BUNDLED, ("twolane-redis", "url"))):
        [deployment] = [body for body in chart("serving", *values) if body["kind"] == "Deployment"]
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        config = OperatorConfig.from_args(container["args"][1:]).default_redis
        assert (config and (config.secret_name, config.key)) == expected


def test_policies_let_in_whom_they_mean() -> None:
    """Brokers reach Redis and workers do not; the operator reaches the metrics of all."""
    owner, spec = Owner("demo", "team", "u-1"), read_spec(model_deployment())
    broker = broker_template(owner, spec, IMAGE, "r1")["metadata"]["labels"]
    worker = worker_template(owner, spec, pools_of(spec)[0], IMAGE, "b:1")["metadata"]["labels"]
    policies = {
        body["metadata"]["name"]: body["spec"]
        for body in yaml.safe_load_all(yaml.safe_dump_all(chart("serving", *BUNDLED)))
        if body["kind"] == "NetworkPolicy"
    }
    [entry] = policies["twolane-redis"]["ingress"]
    [peer] = entry["from"]
    assert _selects(peer["podSelector"], broker)
    assert not _selects(peer["podSelector"], worker)
    assert policies["twolane-redis"]["egress"] == []
    [outside] = [rule for rule in policies["twolane-operator"]["egress"] if "to" in rule]
    assert all(_selects(outside["to"][0]["podSelector"], labels) for labels in (broker, worker))
    assert {port["port"] for port in outside["ports"]} == {8000, 9400}
