"""The chart's tests use the API server of the operator's tests."""

from __future__ import annotations

from tests.operator.cluster.conftest import control_plane, kube, namespace

__all__ = ["control_plane", "kube", "namespace"]
