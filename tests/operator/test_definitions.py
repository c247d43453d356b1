"""Definitions grow with the operator and never shrink; the API server is a dictionary here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from twolane.core.errors import ConfigError
from twolane.operator import definitions
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.definitions import read_definitions, successor, upgrade_definitions
from twolane.operator.resources.shape import Json

CRDS = Path(__file__).parents[2] / "helm" / "twolane" / "crds"


def _installed(spec: Any, **annotations: str) -> Json:
    marks = {f"serving.twolane.dev/{name}": value for name, value in annotations.items()}
    metadata = {"name": "things", "resourceVersion": "7", "annotations": marks}
    return {"kind": "CustomResourceDefinition", "metadata": metadata, "spec": spec}


class Definitions:
    """Definitions as an API server keeps them; it may fail a few times first."""

    def __init__(self, bodies: list[Json], failures: list[int]) -> None:
        self.bodies = {body["metadata"]["name"]: copy.deepcopy(body) for body in bodies}
        self.failures = failures
        self.replaced: list[str] = []

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """An installed one."""
        assert (kind, namespace) == ("CustomResourceDefinition", "")
        return copy.deepcopy(self.bodies.get(name))

    async def replace(self, body: Json) -> None:
        """Replaces it, unless a failure is due."""
        if self.failures:
            raise ClusterError("no", self.failures.pop())
        self.replaced.append(body["metadata"]["name"])
        self.bodies[body["metadata"]["name"]] = body


async def _upgrade(server: Definitions, folder: Path = CRDS) -> None:
    await upgrade_definitions(cast("Cluster", server), folder)


def test_an_older_definition_is_replaced_as_it_was_seen() -> None:
    """With the version it was read at, so that nobody's change is lost, and once only."""
    old = _installed({"a": 1}, version="0.0.9", applied="x", other="kept")
    body = successor(old, {"spec": {"a": 2}}, "0.2.0")
    assert body is not None
    assert (body["spec"], body["metadata"]["resourceVersion"]) == ({"a": 2}, "7")
    assert body["metadata"]["annotations"]["serving.twolane.dev/other"] == "kept"
    assert successor(body, {"spec": {"a": 2}}, "0.2.0") is None


def test_a_newer_definition_stays() -> None:
    """After a rollback objects may use what it knows; 0.10 is newer than 0.9."""
    newer = _installed({"a": 2}, version="0.10.0", applied="x")
    assert successor(newer, {"spec": {"a": 1}}, "0.9.3") is None


async def test_the_charts_own_definitions_are_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conflict with another replica is tried again; a second start changes nothing."""
    monkeypatch.setattr(definitions, "PAUSE_S", 0.0)
    ours = read_definitions(CRDS)
    server = Definitions([{**body, "spec": {}} for body in ours], failures=[409, 0])
    await _upgrade(server)
    assert [body["spec"] for body in server.bodies.values()] == [body["spec"] for body in ours]
    await _upgrade(server)
    assert sorted(server.replaced) == sorted(server.bodies)


@pytest.mark.parametrize(("names", "words"), [([], "is not installed"), (["all"], "can't be upgraded: no")])
async def test_what_somebody_must_mend_ends_the_start(names: list[str], words: str) -> None:
    """A definition that is missing, or rights that are."""
    bodies = [{**body, "spec": {}} for body in read_definitions(CRDS)] if names else []
    with pytest.raises(ConfigError, match=words):
        await _upgrade(Definitions(bodies, failures=[403]))


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    """The operator may replace definitions and nothing more."""
    with pytest.raises(ConfigError, match="definitions alone"):
        read_definitions(tmp_path)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"kind": "ClusterRole"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="definitions alone"):
        read_definitions(tmp_path)
