"""The files of the repository as the layout tests see them."""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("services/src", "operator/src", "proto/src", "kernels/src")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def repository_files() -> tuple[str, ...]:
    """Paths, relative to the root, of every file that is committed or could be (not ignored)."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = {name for name in listing.stdout.split("\0") if name}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


@cache
def python_files() -> tuple[str, ...]:
    """Our Python files; generated stubs are left out."""
    return tuple(name for name in repository_files() if name.endswith(".py") and not name.endswith(GENERATED))


@cache
def parse(name: str) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), filename=name)


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method of ours.

    Attributes:
        path: its file.
        name: qualified name inside the file.
        node: its syntax tree.
        is_kernel: whether a Triton decorator stands above it.
    """

    path: str
    name: str
    node: FunctionNode
    is_kernel: bool

    @property
    def lines(self) -> int:
        """Lines from `def` to the end, the docstring left out: prose must not be cut to fit."""
        last = self.node.end_lineno or self.node.lineno
        lines = last - self.node.lineno + 1
        first = self.node.body[0]
        if ast.get_docstring(self.node, clean=False) is not None:
            lines -= (first.end_lineno or first.lineno) - first.lineno + 1
        return lines

    @property
    def parameters(self) -> int:
        """Parameters a caller may give; the receiver of a method does not count."""
        arguments = self.node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return len(names) - (1 if names[:1] in (["self"], ["cls"]) else 0)


def functions() -> list[Function]:
    """Every function of every Python file, methods and nested ones included."""
    return [function for name in python_files() for function in _functions_in(name, parse(name), "")]


def _functions_in(path: str, parent: ast.AST, prefix: str) -> list[Function]:
    found = []
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, FunctionNode | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if isinstance(child, FunctionNode):
                decorators = " ".join(ast.unparse(decorator) for decorator in child.decorator_list)
                found.append(Function(path, name, child, "triton." in decorators))
            found += _functions_in(path, child, f"{name}.")
        else:
            found += _functions_in(path, child, prefix)
    return found
