"""Values, their schema and the version of the chart agree; no helm is needed to see it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.layout.tree import repository_files

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "twolane"


def _values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return values


def _missing(values: dict[str, Any], schema: dict[str, Any], path: str) -> list[str]:
    known = schema.get("properties", {})
    found = [f"{path}.{name} has no schema" for name in values if known and name not in known]
    found += [f"{path}.{name} has no value" for name in known if values and name not in values]
    for name, value in values.items():
        if isinstance(value, dict) and name in known:
            found += _missing(value, known[name], f"{path}.{name}")
    return found


def test_every_value_has_a_schema_and_every_schema_a_value() -> None:
    """`global` alone is helm's own."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert _missing(_values() | {"global": {}}, schema, "values") == []


def test_every_object_of_the_schema_refuses_unknown_names() -> None:
    """A typing error in a value must not be dropped in silence."""

    def open_objects(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        here = [path] if "properties" in node and node.get("additionalProperties") is not False else []
        inner = node.get("properties", {}).items()
        return here + [name for key, child in inner for name in open_objects(child, f"{path}.{key}")]

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert open_objects(schema, "values") == []


def test_the_chart_has_the_version_of_the_program() -> None:
    """The image of a release has the release's tag."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_there_is_one_copy_of_each_schema() -> None:
    """Two copies drift."""
    files = [ROOT / name for name in repository_files() if name.endswith((".yaml", ".yml"))]
    copies = [path for path in files if "kind: CustomResourceDefinition" in path.read_text(encoding="utf-8")]
    assert {path.parent for path in copies} == {CHART / "crds"}
