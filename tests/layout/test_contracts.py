"""Things written in two places agree: stubs with contracts, pages with the Makefile, versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.layout.tree import ROOT, python_files, repository_files
from twolane.cli.main import VERBS

READMES = [name for name in repository_files() if name.endswith(".md")]
# Built from parts: this file must pass its own test.
PRIVATE_FOLDERS = re.compile(r"(?<![\w.])/(?:" + "|".join(("home", "root", "work", "Users")) + r")/[\w.-]+")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="ignore")


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", _text("Makefile"), flags=re.MULTILINE))


def _code(page: str) -> str:
    """The code of a page: fenced blocks and inline spans; prose such as "make sure" is left out."""
    text = _text(page)
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))


@pytest.mark.slow
def test_the_committed_stubs_are_those_of_the_contracts() -> None:
    """A changed .proto file without `make proto` fails here."""
    command = [sys.executable, "proto/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_stands_in_one_place() -> None:
    """Only pyproject.toml says the version; the chart repeats it and must agree."""
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    literal = re.compile(rf"""["']{re.escape(version)}["']""")
    assert [name for name in python_files() if literal.search(_text(name))] == []
    for chart in (name for name in repository_files() if name.endswith("Chart.yaml")):
        found = re.search(r"""^appVersion:\s*["']?([^"'\s]+)""", _text(chart), flags=re.MULTILINE)
        assert found is not None, f"{chart} has no appVersion"
        assert found.group(1) == version, f"{chart} says {found.group(1)}, pyproject.toml {version}"


@pytest.mark.parametrize("page", READMES)
def test_every_make_target_of_a_page_exists(page: str) -> None:
    """A command that a page shows can be typed."""
    shown = set(re.findall(r"\bmake ([a-z][a-z-]*)", _code(page)))
    assert shown - _make_targets() == set()


@pytest.mark.parametrize("page", READMES)
def test_every_twolane_verb_of_a_page_exists(page: str) -> None:
    """The same for the twolane command."""
    known = {verb.name.split()[0] for verb in VERBS}
    shown = set(re.findall(r"(?:^|[\s`/])twolane ([a-z]+)\b", _code(page)))
    assert shown - known == set()


def test_every_target_of_the_makefile_is_declared_phony() -> None:
    """A file named like a target must not stop it from running."""
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", _text("Makefile"), flags=re.MULTILINE))
    assert _make_targets() == phony


def test_no_file_names_a_folder_of_one_machine() -> None:
    """Paths of a developer's machine help nobody else."""
    found = {
        name: match.group(0)
        for name in repository_files()
        if not name.endswith((".png", ".safetensors", ".gz"))
        if (match := PRIVATE_FOLDERS.search(_text(name)))
    }
    assert found == {}


def test_every_pin_is_a_plain_version() -> None:
    """constraints.txt holds no address, folder or unpinned name."""
    plain = re.compile(r"^[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+$")
    assert [line for line in _text("constraints.txt").splitlines() if not plain.match(line)] == []


def test_every_dependency_is_pinned() -> None:
    """What pyproject.toml asks for, constraints.txt fixes."""
    project = tomllib.loads(_text("pyproject.toml"))["project"]
    asked = [
        *project["dependencies"],
        *(d for group in project["optional-dependencies"].values() for d in group),
    ]
    pinned = {_normal(line.split("==")[0]) for line in _text("constraints.txt").splitlines()}
    names = {_normal(re.split(r"[^A-Za-z0-9_.-]", dependency)[0]) for dependency in asked}
    assert names - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
