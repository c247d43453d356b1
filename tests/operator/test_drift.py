"""What counts as drift: every change to what was applied, nothing that others or the API server add."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.operator.drift import first_difference, reason_to_apply, sealed

scalars = st.integers(0, 9) | st.sampled_from(["a", "b", "true"]) | st.booleans()
documents = st.recursive(
    scalars,
    lambda inner: (
        st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=10,
)
objects = st.dictionaries(st.sampled_from(["x", "y", "z"]), documents, min_size=1, max_size=3)


def _grow(value: Any) -> Any:
    """The value as others leave it: with more fields at every level."""
    if isinstance(value, dict):
        return {**{name: _grow(item) for name, item in value.items()}, "added": "by others"}
    if isinstance(value, list):
        return [_grow(item) for item in value]
    return value


@given(desired=objects)
def test_fields_of_others_are_no_drift(desired: Any) -> None:
    """Defaults and foreign fields may appear anywhere."""
    assert first_difference(_grow(desired), desired) is None


def _spoil(value: Any, draw: Any) -> Any:
    """The value with one scalar changed, somewhere."""
    if isinstance(value, dict):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: _spoil(value[name], draw)}
    if isinstance(value, list):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], _spoil(value[index], draw), *value[index + 1 :]]
    return f"not {value}"


@given(desired=objects, data=st.data())
def test_a_changed_scalar_is_drift_wherever_it_is(desired: Any, data: st.DataObject) -> None:
    """No depth hides it."""
    assert first_difference(_spoil(copy.deepcopy(desired), data.draw), desired) is not None


@pytest.mark.parametrize(
    ("observed", "desired", "same"),
    [
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"limits": {"cpu": "1000m", "memory": "1024Mi"}}, True),
        ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1"}}, False),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "1.0"}]}, False),
        ({"env": [{"name": "B"}, {"name": "A"}]}, {"env": [{"name": "A"}]}, True),
        ({"args": ["a", "b"]}, {"args": ["a"]}, False),
        ({"ingress": [{"from": []}, {}]}, {"ingress": [{"from": []}]}, False),
        ({}, {"tolerations": [], "tmp": {}}, True),
        ({}, {"env": [{"name": "A"}]}, False),
    ],
)
def test_lists_and_quantities_are_compared_as_the_api_server_means_them(
    observed: Any, desired: Any, same: bool
) -> None:
    """Quantities by value, named entries by name, other lists as a whole."""
    assert (first_difference(observed, desired) is None) == same


def test_a_field_that_is_no_longer_wanted_is_a_change() -> None:
    """It is still there and covers all that is wanted; the seal tells."""
    old, new = ({"metadata": {"name": "a"}, "spec": spec} for spec in ({"x": 1, "y": 2}, {"x": 1}))
    assert reason_to_apply(None, sealed(old)) == "created"
    assert reason_to_apply(sealed(old), sealed(old)) is None
    assert reason_to_apply(sealed(old), sealed(new)) == "changed"
    drifted = {**sealed(old), "spec": {"x": 1, "y": 3}}
    assert reason_to_apply(drifted, sealed(old)) == ".spec.y"
