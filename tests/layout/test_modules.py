"""What every module must have, and which files must never exist."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

from tests.layout.tree import ROOT, SOURCE_ROOTS, parse, python_files, repository_files

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}


def test_no_root_closes_the_namespace() -> None:
    """A twolane/__init__.py in one root would hide the packages of the other three."""
    forbidden = {f"{root}/twolane/__init__.py" for root in SOURCE_ROOTS}
    assert forbidden & set(repository_files()) == set()


def test_no_top_folder_shadows_a_standard_module() -> None:
    """With operator/__init__.py at the root, even `import collections` would fail there."""
    packages = {name for name in repository_files() if name.count("/") == 1 and name.endswith("/__init__.py")}
    assert packages == set()


def test_git_ignores_no_source_file() -> None:
    """A rule in .gitignore that fits too much would keep a package out of every other checkout."""
    folders = [*SOURCE_ROOTS, "tests", "deploy", "helm"]
    found = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert found - set(repository_files()) == set()


def test_every_module_says_what_it_is_for() -> None:
    """A module opens with a docstring."""
    assert [name for name in python_files() if not ast.get_docstring(parse(name))] == []


def test_no_module_is_named_after_nothing() -> None:
    """A name such as `utils` attracts whatever has no home."""
    modules = [PurePosixPath(name) for name in python_files()]
    bad = [str(path) for path in modules if FORBIDDEN_NAMES & {*path.parts[:-1], path.stem}]
    assert bad == []


def test_every_public_class_and_function_has_a_docstring() -> None:
    """What others may call says what it does."""
    missing = []
    for name in python_files():
        if not name.startswith(SOURCE_ROOTS):
            continue
        for node in parse(name).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                public = not node.name.startswith("_")
                if public and not ast.get_docstring(node):
                    missing.append(f"{name}::{node.name}")
    assert missing == []
