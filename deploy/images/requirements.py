"""Prints what an image has to install, one requirement a line: `requirements.py control|engine|engine-cpu`.

The Dockerfile calls it. `control` is all of twolane but the tensor library and plots: operator, router,
broker and the fetching of models; `engine` is what a worker needs beside it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

# Plots are drawn by benchmarks and the simulator alone.
ENGINE = ("torch", "triton", "numba", "matplotlib")
# An image for CPUs alone runs no kernel that Triton would compile.
ENGINE_CPU = ("torch", "numba", "matplotlib")


def requirements(kind: str, project: dict[str, object]) -> list[str]:
    """The requirements of one kind of image, in the order of pyproject.toml.

    Args:
        kind: control, engine or engine-cpu.
        project: the table `project` of pyproject.toml.
    """
    dependencies, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list)
    assert isinstance(extras, dict)
    if kind == "control":
        return [item for item in [*dependencies, *extras["operator"]] if _name(item) not in ENGINE]
    names = {"engine": ENGINE, "engine-cpu": ENGINE_CPU}[kind]
    return [item for item in dependencies if _name(item) in names]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower()


if __name__ == "__main__":
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(requirements(sys.argv[1], tomllib.loads(text)["project"])))
