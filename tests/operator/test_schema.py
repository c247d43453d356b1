"""The schema in the chart and the typed resources are one thing written twice: they must not drift."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import WorkerPoolSpec

CRDS = Path(__file__).parents[2] / "helm" / "twolane" / "crds"
LIMITS = {"ge": "minimum", "le": "maximum", "min_length": "minLength", "max_length": "maxLength"}


def _schema(name: str) -> Json:
    crd = yaml.safe_load((CRDS / name).read_text(encoding="utf-8"))
    [version] = crd["spec"]["versions"]
    spec: Json = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def _bare(annotation: Any) -> Any:
    """The type without None and Annotated."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [item for item in typing.get_args(annotation) if item is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _constraints(annotation: Any, metadata: list[Any]) -> dict[str, Any]:
    """Limits of a field, wherever pydantic or Annotated keeps them."""
    found: dict[str, Any] = {}
    items = list(metadata)
    for arm in [annotation, *typing.get_args(annotation)]:
        if typing.get_origin(arm) is typing.Annotated:
            for extra in typing.get_args(arm)[1:]:
                items += [extra, *getattr(extra, "metadata", [])]
    for item in items:
        for ours, theirs in LIMITS.items():
            if (value := getattr(item, ours, None)) is not None:
                found[theirs] = value
        if (pattern := getattr(item, "pattern", None)) is not None:
            found["pattern"] = pattern
    return found


def _check(model: type[BaseModel], schema: Json, path: str, wrong: list[str]) -> None:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    declared = schema.get("properties", {})
    if set(fields) != set(declared):
        wrong.append(f"{path}: fields differ: {sorted(set(fields) ^ set(declared))}")
    required = {name for name, field in fields.items() if field.is_required()}
    if required != set(schema.get("required", [])):
        wrong.append(f"{path}: required differ: {sorted(required ^ set(schema.get('required', [])))}")
    for name in set(fields) & set(declared):
        _check_field(fields[name], declared[name], f"{path}.{name}", wrong)


def _check_field(field: FieldInfo, schema: Json, path: str, wrong: list[str]) -> None:
    kind = _bare(field.annotation)
    if typing.get_origin(kind) is typing.Literal and list(typing.get_args(kind)) != schema.get("enum"):
        wrong.append(f"{path}: enum differs")
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        _check(kind, schema, path, wrong)
    elif typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if issubclass(item, BaseModel):
            _check(item, schema["items"], f"{path}[]", wrong)
    else:
        expected = {name: schema[name] for name in (*LIMITS.values(), "pattern") if name in schema}
        if (ours := _constraints(field.annotation, field.metadata)) != expected:
            wrong.append(f"{path}: limits differ: {ours} here, {expected} in the schema")
    default = field.get_default()
    plain = (
        default.model_dump(by_alias=True, exclude_defaults=True)
        if isinstance(default, BaseModel)
        else default
    )
    if not field.is_required() and schema.get("default") != (None if plain == () else plain):
        wrong.append(f"{path}: default {plain!r} here, {schema.get('default')!r} in the schema")


@pytest.mark.parametrize(
    ("name", "model"),
    [("modeldeployments.yaml", ModelDeploymentSpec), ("workerpools.yaml", WorkerPoolSpec)],
)
def test_the_schema_and_the_typed_resources_agree(name: str, model: type[BaseModel]) -> None:
    """Names, types of choice, limits and defaults are the same in both."""
    wrong: list[str] = []
    _check(model, _schema(name), "spec", wrong)
    assert wrong == []


def _described(schema: Json, path: str) -> list[str]:
    missing = []
    for name, child in schema.get("properties", {}).items():
        if not child.get("description"):
            missing.append(f"{path}.{name}")
        missing += _described(child, f"{path}.{name}")
        missing += _described(child.get("items", {}), f"{path}.{name}[]")
    return missing


@pytest.mark.parametrize("name", ["modeldeployments.yaml", "workerpools.yaml"])
def test_every_field_of_a_spec_says_what_it_is(name: str) -> None:
    """`kubectl explain` has an answer for each."""
    assert _described(_schema(name), "spec") == []


@pytest.mark.parametrize("name", ["modeldeployments.yaml", "workerpools.yaml"])
def test_no_description_is_cut_off(name: str) -> None:
    """In YAML a comma ends an unquoted word: what follows would be a key without a value."""

    def empty_keys(node: Any) -> list[str]:
        if isinstance(node, dict):
            here = [str(key) for key, value in node.items() if value is None]
            return here + [key for value in node.values() for key in empty_keys(value)]
        return [key for item in node for key in empty_keys(item)] if isinstance(node, list) else []

    assert empty_keys(_schema(name)) == []
