"""A Redis for all models whose brokers name none."""

from __future__ import annotations

import pytest

from tests.operator.objects import IMAGE, World, model_deployment
from twolane.operator.actions import Apply
from twolane.operator.config import OperatorConfig
from twolane.operator.names import COMPONENT_LABEL
from twolane.operator.plan import plan
from twolane.operator.resources.shape import Json


def _broker_env(declared: Json, args: list[str]) -> list[Json]:
    config = OperatorConfig.from_args(["--image", IMAGE, *args])
    made = plan(World(model_deployment(broker=declared)).observe(), config.image, config.default_redis)
    [body] = [
        action.body
        for action in made.actions
        if isinstance(action, Apply)
        and action.body["kind"] == "Deployment"
        and action.body["metadata"]["labels"][COMPONENT_LABEL] == "broker"
    ]
    [container] = body["spec"]["template"]["spec"]["containers"]
    return [entry for entry in container["env"] if entry["name"] == "TWOLANE_BROKER_REDIS_URL"]


@pytest.mark.parametrize(
    ("declared", "args", "secret"),
    [
        ({}, [], None),
        ({}, ["--redis-secret", "shared"], "shared/url"),
        ({}, ["--redis-secret", "shared", "--redis-secret-key", "address"], "shared/address"),
        ({"redis": {"secretName": "own"}}, ["--redis-secret", "shared"], "own/url"),
    ],
)
def test_the_shared_redis_is_for_brokers_that_name_none(
    declared: Json, args: list[str], secret: str | None
) -> None:
    """By reference to a Secret alone; whoever names one keeps it."""
    found = [entry["valueFrom"]["secretKeyRef"] for entry in _broker_env(declared, args)]
    assert [f"{item['name']}/{item['key']}" for item in found] == ([secret] if secret else [])
