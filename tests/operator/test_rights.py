"""The chart's rights are those the code uses: none is missing, none is there for nothing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from twolane.operator.kinds import PATHS
from twolane.operator.plugin.doctor import RIGHTS
from twolane.operator.store import CHILD_KINDS, KINDS

TEMPLATE = Path(__file__).parents[2] / "helm" / "twolane" / "templates" / "_names.tpl"
ELSEWHERE = {"Lease", "Secret", "Certificate"}
"""Kinds with rights of their own, which values of the chart turn on."""
CHANGED = {"create", "patch", "delete"}


def _rights() -> dict[str, set[str]]:
    """Verbs by resource, of the rules that every installation has."""
    text = TEMPLATE.read_text(encoding="utf-8")
    found = re.search(r'define "twolane\.rules" -}}\n(.*?){{- if', text, re.DOTALL)
    assert found
    rules = yaml.safe_load(found.group(1))
    return {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}


def test_every_kind_of_child_may_be_made_changed_and_deleted() -> None:
    """What the plan makes."""
    rights = _rights()
    for kind in CHILD_KINDS:
        assert rights[PATHS[kind][1]] >= CHANGED | {"get", "list"}, kind


def test_every_kind_that_is_watched_may_be_watched() -> None:
    """What wakes the reconciler."""
    rights = _rights()
    for kind in KINDS:
        assert {"list", "watch"} <= rights[PATHS[kind][1]], kind


def test_what_the_doctor_asks_for_is_what_the_chart_gives() -> None:
    """It must not call a complete installation incomplete."""
    rights = _rights()
    for (_, plural), verbs in RIGHTS.items():
        assert set(verbs) <= rights[plural], plural


def test_no_right_is_there_for_nothing() -> None:
    """Kinds nobody reads, and verbs nobody uses."""
    rights = _rights()
    plurals = {plural for kind, (_, plural) in PATHS.items() if kind not in ELSEWHERE}
    subresources = {"modeldeployments/status", "workerpools/status", "modeldeployments/finalizers"}
    assert set(rights) <= plurals | subresources
    assert rights["modeldeployments"] == {"get", "list", "watch", "patch"}
    assert rights["pods"] == {"get", "list", "watch", "delete"}
    assert rights["events"] == {"create", "patch"}
    assert "secrets" not in rights
    assert not any("*" in verbs for verbs in rights.values())
    assert "*" not in rights
