"""The images: between them they install every dependency; none runs as root or keeps a secret."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.images.requirements import requirements

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "images"
TARGETS = {"control", "cpu", "cuda"}


def _project() -> dict[str, object]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, object] = tomllib.loads(text)["project"]
    return project


def _stages() -> dict[str, tuple[str, list[str]]]:
    """What each stage stands on and its instructions, one a line."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stages: dict[str, tuple[str, list[str]]] = {}
    current: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if found := re.match(r"FROM (\S+) AS (\S+)$", line):
            current = []
            stages[found[2]] = (found[1], current)
        elif line and not line.startswith("#"):
            current.append(line)
    return stages


def test_every_dependency_is_in_an_image() -> None:
    """Control and engine together are the project, with what the operator needs."""
    project = _project()
    dependencies, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(dependencies, list)
    assert isinstance(extras, dict)
    control, engine = requirements("control", project), requirements("engine", project)
    assert sorted(control + engine) == sorted([*dependencies, *extras["operator"]])
    assert set(requirements("engine-cpu", project)) < set(engine)


def test_the_control_image_can_do_without_the_engine() -> None:
    """Its processes import none of what is left out, from the code as it is."""
    left_out = [re.split(r"\W", item)[0] for item in requirements("engine", _project())]
    for module in ("operator.main", "router.app", "broker.main", "operator.fetch_model"):
        code = f"import sys, twolane.{module}; print([m for m in {left_out} if m in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == "[]", module


def test_a_requirement_of_no_known_kind_is_refused() -> None:
    """A typing error in the Dockerfile must not make an empty image."""
    with pytest.raises(KeyError):
        requirements("cpu", _project())


def test_every_target_ends_without_root() -> None:
    """By a number, which a cluster can check."""
    stages = _stages()
    assert stages.keys() >= TARGETS
    for target in TARGETS:
        base, lines = stages[target]
        assert base == "runtime"
        assert [line for line in lines if line.startswith("USER ")][-1] == "USER 65532:65532"
        assert lines[-1].startswith("USER ")


def test_no_layer_can_hold_a_secret() -> None:
    """Credentials come by mounts of one command; arguments and variables are kept in an image for ever."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    named = re.findall(r"^(?:ARG|ENV) (.*)$", text, flags=re.MULTILINE)
    assert not [line for line in named if re.search(r"(?i)token|secret|password|credential", line)]
    installs = [
        line for _, lines in _stages().values() for line in lines if "pip install --constraint" in line
    ]
    assert len(installs) == 4
    assert all("--mount=type=secret,id=pip" in line for line in installs)


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    """A .git folder or an environment beside it must never reach a builder."""
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignore[1:2] == ["*"] or "*" in ignore
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    copied = [
        source
        for _, lines in _stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in let_in)
    assert not [
        name for name in (".git", ".venv", "shared") if any(fnmatch.fnmatch(name, rule) for rule in let_in)
    ]
