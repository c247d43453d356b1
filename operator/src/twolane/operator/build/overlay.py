"""Merges a user's pod template into a built one; build functions call it last.

Lists whose entries all have names are merged by name, as kubectl would for containers, volumes and
env; other lists are replaced. Labels that selectors rely on can't be overridden.
"""

from __future__ import annotations

from typing import Any

from twolane.operator.resources.pools import PodTemplate
from twolane.operator.resources.shape import Json

# mountPath: the same volume may be mounted twice.
_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort", "tolerations": None}


def overlay(template: Json, *overrides: PodTemplate | None) -> Json:
    """The pod template with every override merged in, later ones over earlier ones."""
    for override in overrides:
        if override is not None:
            template = _with(template, override)
    return template


def _with(template: Json, override: PodTemplate) -> Json:
    metadata = template["metadata"]
    merged = {
        **metadata,
        "labels": override.metadata.labels | metadata["labels"],
        "annotations": metadata.get("annotations", {}) | override.metadata.annotations,
    }
    return {**template, "metadata": merged, "spec": merge(template["spec"], override.spec)}


def merge(below: Any, above: Any, field: str = "") -> Any:
    """`above` over `below`: objects by field, named lists by name, the rest replaced; null removes."""
    if isinstance(below, dict) and isinstance(above, dict):
        fields = {**below, **{name: merge(below.get(name), value, name) for name, value in above.items()}}
        return {name: value for name, value in fields.items() if value is not None}
    key = _KEYS.get(field, "name")
    if key and isinstance(below, list) and isinstance(above, list) and _keyed([*below, *above], key):
        return _merge_by(key, below, above)
    return above


def _keyed(entries: list[Any], key: str) -> bool:
    return all(isinstance(entry, dict) and key in entry for entry in entries)


def _merge_by(key: str, below: list[Json], above: list[Json]) -> list[Json]:
    merged = {entry[key]: entry for entry in below}
    for entry in above:
        merged[entry[key]] = merge(merged.get(entry[key]), entry)
    return list(merged.values())
