"""Brings the custom resource definitions up to date when a newer operator starts.

helm installs the chart's `crds` folder once and never touches it again; the chart mounts the same files
into the operator, which replaces what an older version had installed. Never the other way: after a
rollback objects may already use what the newer definitions know.
"""

from __future__ import annotations

import asyncio
import logging
import re
from importlib.metadata import version
from pathlib import Path

import yaml

from twolane.core.errors import ConfigError
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.names import APPLIED_ANNOTATION, VERSION_ANNOTATION
from twolane.operator.resources.shape import Json
from twolane.operator.revision import digest

log = logging.getLogger(__name__)

KIND = "CustomResourceDefinition"
PAUSE_S = 3.0


async def upgrade_definitions(cluster: Cluster, folder: Path) -> None:
    """Replaces every definition in `folder` that an older version had installed; waits for the API server.

    Raises:
        ConfigError: a file holds something else, one is not installed at all, or replacing is forbidden.
    """
    ours = version("twolane")
    for definition in read_definitions(folder):
        name = definition["metadata"]["name"]
        while True:
            if await _upgraded(cluster, name, definition, ours):
                break
            await asyncio.sleep(PAUSE_S)


def read_definitions(folder: Path) -> list[Json]:
    """The definitions of a folder.

    Raises:
        ConfigError: there are none, or a file holds something else.
    """
    found: list[Json] = []
    for path in sorted(folder.glob("*.yaml")):
        found += [body for body in yaml.safe_load_all(path.read_text(encoding="utf-8")) if body]
    if not found or any(body.get("kind") != KIND for body in found):
        raise ConfigError(f"{folder} must hold custom resource definitions alone", param="definitions_dir")
    return found


def successor(installed: Json, definition: Json, ours: str) -> Json | None:
    """What to replace an installed definition with; None when it is as new as ours."""
    annotations = installed["metadata"].get("annotations", {})
    seal = digest(definition["spec"])[:16]
    theirs = annotations.get(VERSION_ANNOTATION, "")
    if annotations.get(APPLIED_ANNOTATION) == seal or _numbers(theirs) > _numbers(ours):
        return None
    marks = {**annotations, VERSION_ANNOTATION: ours, APPLIED_ANNOTATION: seal}
    return {
        **installed,
        "metadata": {**installed["metadata"], "annotations": marks},
        "spec": definition["spec"],
    }


async def _upgraded(cluster: Cluster, name: str, definition: Json, ours: str) -> bool:
    try:
        installed = await cluster.get(KIND, "", name)
        if installed is None:
            raise ConfigError(f"{name} is not installed; apply the chart's folder crds first")
        body = successor(installed, definition, ours)
        if body is not None:
            await cluster.replace(body)
            log.info("definition upgraded", extra={"definition": name, "version": ours})
    except ClusterError as error:
        if error.permanent:
            raise ConfigError(f"the definition {name} can't be upgraded: {error}") from error
        # Another replica was faster, or the API server is away.
        log.warning("again later", extra={"definition": name, "reason": str(error)})
        return False
    return True


def _numbers(words: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", words)]
