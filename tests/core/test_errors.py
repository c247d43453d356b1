"""The one error tree: documented as it is, codes that are stable and unique."""

from __future__ import annotations

import re

import grpc
import pytest

from twolane.core import errors
from twolane.core.errors import ERRORS_BY_CODE, Internal, TwolaneError, error_from_code


def _all(root: type[TwolaneError]) -> list[type[TwolaneError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(found for child in children for found in _all(child))]


def test_the_docstring_shows_the_tree_as_it_is() -> None:
    """Name, HTTP status and code of every class."""
    lines = re.findall(r"[├└]── (\w+)\s+(\d{3})\s+(\w+)", errors.__doc__ or "")
    shown = {(name, int(status), code) for name, status, code in lines}
    real = {(kind.__name__, kind.http_status, kind.code) for kind in _all(TwolaneError)[1:]}
    assert shown == real


def test_every_code_means_one_class() -> None:
    """A code that travelled finds its class again, with all it carried."""
    kinds = _all(TwolaneError)[1:]
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        error = error_from_code(kind.code, "why", param="n", retry_after_s=2.0)
        assert type(error) is kind
        assert (error.message, error.param, error.retry_after_s) == ("why", "n", 2.0)


def test_an_unknown_code_is_a_defect_of_ours() -> None:
    """A newer peer may send one."""
    assert type(error_from_code("from_the_future", "why")) is Internal


@pytest.mark.parametrize("kind", list(ERRORS_BY_CODE.values()), ids=lambda kind: kind.__name__)
def test_every_class_maps_to_statuses_that_exist(kind: type[TwolaneError]) -> None:
    """gRPC's name, an HTTP error status, and retryable only where a retry can help."""
    assert hasattr(grpc.StatusCode, kind.grpc_status)
    assert 400 <= kind.http_status <= 599
    assert not kind.retryable or kind.http_status in {429, 503}
