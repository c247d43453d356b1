"""Whether an object still is as it was applied; the plan applies again when it is not.

The API server adds fields and writes quantities its own way, and others may own fields of their
own: only what the operator asked for is compared.
"""

from __future__ import annotations

from typing import Any

from kubernetes.utils.quantity import parse_quantity

from twolane.operator.names import APPLIED_ANNOTATION
from twolane.operator.resources.shape import Json
from twolane.operator.revision import digest

_QUANTITIES = {"limits", "requests", "sizeLimit"}
# Entries of lists with such a field are owned one by one; other lists are owned as a whole.
_ENTRY_KEYS = ("name", "mountPath", "containerPort", "uid", "topologyKey")


def sealed(desired: Json) -> Json:
    """The object with the hash of itself, so that a later version of it is known as another one."""
    metadata = desired["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: digest(desired)[:16]}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def reason_to_apply(observed: Json | None, desired: Json) -> str | None:
    """None when a sealed object needs no apply; else "created", "changed", or the field that drifted."""
    if observed is None:
        return "created"
    seal = observed["metadata"].get("annotations", {}).get(APPLIED_ANNOTATION)
    if seal != desired["metadata"]["annotations"][APPLIED_ANNOTATION]:
        return "changed"
    return first_difference(observed, desired)


def first_difference(observed: Any, desired: Any, path: str = "") -> str | None:
    """The first field of `desired` that `observed` does not have alike; None when it has all."""
    if isinstance(desired, dict):
        return _difference_of_fields(observed, desired, path)
    if isinstance(desired, list):
        return _difference_of_entries(observed, desired, path)
    if observed == desired or (observed is None and desired in ("", False)):
        return None
    return None if _same_quantity(observed, desired, path) else path


def _difference_of_fields(observed: Any, desired: Json, path: str) -> str | None:
    if not isinstance(observed, dict):
        return None if observed is None and not desired else path
    for name, value in desired.items():
        found = first_difference(observed.get(name), value, f"{path}.{name}")
        if found is not None:
            return found
    return None


def _difference_of_entries(observed: Any, desired: list[Any], path: str) -> str | None:
    present = observed if isinstance(observed, list) else []
    keyed = desired and all(_is_keyed(entry) for entry in desired)
    if len(present) < len(desired) or (not keyed and len(present) != len(desired)):
        return path
    if not keyed:
        pairs = zip(present, desired, strict=True)
        return next((path for old, new in pairs if first_difference(old, new, path)), None)
    for entry in desired:
        if all(first_difference(candidate, entry, path) for candidate in present):
            return path
    return None


def _is_keyed(entry: Any) -> bool:
    return isinstance(entry, dict) and any(key in entry for key in _ENTRY_KEYS)


def _same_quantity(observed: Any, desired: Any, path: str) -> bool:
    if not _QUANTITIES & set(path.split(".")) or observed is None:
        return False
    try:
        same = parse_quantity(observed) == parse_quantity(desired)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return bool(same)
