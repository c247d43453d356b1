"""Finds arithmetic on values as they were loaded, which Triton's interpreter computes wrongly for bfloat16.

The interpreter holds bfloat16 as bit patterns: loads, stores and casts are right, any other operation is
silently wrong. Used by ``test_bf16_lint.py`` on every kernel. Rule: what ``tl.load`` returns must be cast
before use; a raw value may only be stored, cast, or asked for its dtype. Operands of ``tl.dot`` may stay raw
on the GPU if they were upcast under ``if UPCAST_DOT``, which is true in the interpreter only.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

RAW, GUARDED = "raw", "guarded"


@dataclass(frozen=True)
class Finding:
    """A use of a raw value: line, function, what was done with it."""

    line: int
    function: str
    use: str


def lint(source: str) -> list[Finding]:
    """All findings in the ``@triton.jit`` functions of one module."""
    findings: list[Finding] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            "jit" in ast.unparse(item) for item in node.decorator_list
        ):
            checker = _Kernel(node.name)
            checker.block(node.body)
            findings += checker.findings
    return findings


@dataclass
class _Kernel:
    """Walks one kernel in order, keeping which names hold raw or guarded values."""

    name: str
    state: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            kind = self.kind(node.value)
            for target in node.targets:
                self.assign(target, kind)
        elif isinstance(node, ast.AugAssign):
            self.forbid(node.value, "arithmetic")
            self.forbid(node.target, "arithmetic")
        elif isinstance(node, ast.If):
            self.branch(node)
        elif isinstance(node, ast.For | ast.While):
            # Twice: a value assigned late in the body is used early in the next turn.
            self.forbid(node.iter if isinstance(node, ast.For) else node.test, "a loop bound")
            self.block(node.body)
            self.block(node.body)
        elif isinstance(node, ast.Expr):
            self.kind(node.value)
        elif isinstance(node, ast.Return) and node.value is not None:
            self.forbid(node.value, "a return value")

    def branch(self, node: ast.If) -> None:
        self.forbid(node.test, "a condition")
        if ast.unparse(node.test) == "UPCAST_DOT":
            raw = {name for name, kind in self.state.items() if kind == RAW}
            self.block(node.body)
            for name in raw:
                if name not in self.state:
                    self.state[name] = GUARDED
            return
        before = dict(self.state)
        self.block(node.body)
        after_body, self.state = self.state, before
        self.block(node.orelse)
        # What is raw on either way is raw afterwards.
        for name, kind in after_body.items():
            if self.state.get(name) != RAW:
                self.state[name] = kind

    def assign(self, target: ast.expr, kind: str | None) -> None:
        if isinstance(target, ast.Tuple):
            for element in target.elts:
                self.assign(element, None)
        elif isinstance(target, ast.Name):
            self.state.pop(target.id, None)
            if kind is not None:
                self.state[target.id] = kind

    def kind(self, node: ast.expr) -> str | None:
        """Kind of an expression's value; records findings inside it."""
        if isinstance(node, ast.Name):
            return self.state.get(node.id)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Attribute):
            # x.dtype and module attributes compute nothing.
            if node.attr != "dtype":
                self.kind(node.value)
            return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.forbid(child, "arithmetic")
        return None

    def call(self, node: ast.Call) -> str | None:
        function = ast.unparse(node.func)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if function.endswith((".to", ".cast")) and isinstance(node.func, ast.Attribute):
            inner = self.kind(node.func.value)
            wanted = ast.unparse(node.args[0])
            if wanted.endswith(".dtype") and self.state.get(wanted.removesuffix(".dtype")) == GUARDED:
                return GUARDED
            return RAW if wanted.endswith("element_ty") or (inner is None and "16" in wanted) else None
        if function == "tl.load" or (function.endswith(".load") and not function.startswith("tl.")):
            for argument in arguments:
                self.forbid(argument, "an address or mask")
            return RAW
        if function == "tl.store":
            self.forbid(node.args[0], "an address")
            self.kind(node.args[1])
            return None
        if function in {"tl.trans", "tl.reshape"}:
            return self.kind(node.args[0])
        if function == "tl.where" and GUARDED in (
            kinds := [self.kind(argument) for argument in node.args[1:]]
        ):
            # Choosing between values moves them; the interpreter sees them upcast.
            self.forbid(node.args[0], "a condition")
            return RAW if RAW in kinds else GUARDED
        if function == "tl.dot":
            for argument in arguments:
                if self.kind(argument) == RAW:
                    self.report(argument, "a dot operand that isn't upcast under UPCAST_DOT")
            return None
        for argument in arguments:
            # Handing a dot operand on to another kernel function keeps it what it is there: a parameter.
            if not (isinstance(argument, ast.Name) and self.state.get(argument.id) == GUARDED):
                self.forbid(argument, f"an argument of {function}")
        return None

    def forbid(self, node: ast.expr, use: str) -> None:
        if self.kind(node) is not None:
            self.report(node, use)

    def report(self, node: ast.expr, use: str) -> None:
        finding = Finding(node.lineno, self.name, f"{ast.unparse(node)} is used as {use}")
        if finding not in self.findings:
            self.findings.append(finding)
