"""Compiles every kernel for given GPU architectures without a GPU, and checks what came out against its
budget.

Run in CI: ``python -m twolane.kernels.compile_gate --arch 80 90``. Prints one line per kernel and
architecture: registers, spilled bytes, shared memory, tensor-core instructions. Exits 1 on a violation, 2
when it can't run.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from twolane.kernels import launch
from twolane.kernels.compile_gate_cases import KernelCase, kernel_cases

# What one block of threads may use: bytes of shared memory per architecture.
SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# Tensor cores of Ampere and Hopper; asynchronous loads by threads, and by the tensor memory unit.
_INSTRUCTIONS = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG")
_TENSOR_CORE = re.compile(rf"\b({'|'.join(_INSTRUCTIONS)})\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_TOOL_TIMEOUT_S = 120


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of one kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def compile_case(case: KernelCase, arch: int) -> Compiled:
    """Compile one kernel for one architecture and read registers, stack and instructions from the binary."""
    signature, constants, attributes = case.specialise()
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return compile_source(source, case.config.compile_options(), arch)


def compile_source(source: ASTSource, launch_options: Mapping[str, Any], arch: int) -> Compiled:
    """The same of any kernel with its argument types and constants."""
    target = GPUTarget("cuda", arch, 32)
    options = make_backend(target).parse_options(dict(launch_options))
    compiled = triton.compile(source, target=target, options=options.__dict__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _USAGE.search(_cuobjdump("-res-usage", path))
        counts = collections.Counter(_TENSOR_CORE.findall(_cuobjdump("-sass", path)))
    if usage is None:
        raise RuntimeError(f"cuobjdump reported no resource usage for {source.fn}")
    registers, stack, _, local = (int(number) for number in usage.groups())
    return Compiled(registers, stack + local, int(compiled.metadata.shared), dict(counts))


def violations(case: KernelCase, arch: int, compiled: Compiled) -> list[str]:
    """Where the result breaks the kernel's budget, in words; empty when it holds."""
    budget = case.budget
    found = []
    if compiled.registers > budget.max_registers:
        found.append(f"{compiled.registers} registers, at most {budget.max_registers}")
    if compiled.spilled_bytes > 0:
        found.append(f"{compiled.spilled_bytes} bytes spilled or on the stack, none allowed")
    limit = min(budget.max_shared_bytes, SHARED_LIMIT_BYTES.get(arch, budget.max_shared_bytes))
    if compiled.shared_bytes > limit:
        found.append(f"{compiled.shared_bytes} bytes of shared memory, at most {limit}")
    wanted = budget.instructions.get(arch, ())
    found += [f"no {name} instruction" for name in wanted if compiled.instructions.get(name, 0) == 0]
    return found


def _cuobjdump(flag: str, path: Path) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    done = subprocess.run(
        [tool, flag, str(path)], capture_output=True, text=True, check=True, timeout=_TOOL_TIMEOUT_S
    )
    return done.stdout


def _row(case: KernelCase, arch: int, compiled: Compiled, broken: list[str]) -> str:
    counts = "".join(
        f"{compiled.instructions.get(name, 0):8d}" for name in ("HMMA", "HGMMA", "LDGSTS", "UTMALDG")
    )
    verdict = "ok" if not broken else "; ".join(broken)
    return (
        f"{case.name:36} sm_{arch} {compiled.registers:9d} {compiled.spilled_bytes:7d}"
        f" {compiled.shared_bytes / 1024:9.1f}{counts}  {verdict}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Compile, print the table, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m twolane.kernels.compile_gate", description=__doc__)
    parser.add_argument(
        "--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities, as 80 or 90"
    )
    parser.add_argument("--only", default="", help="compile only kernels whose name contains this")
    parser.add_argument(
        "--all-configs", action="store_true", help="also every tuning candidate, not the default only"
    )
    options = parser.parse_args(arguments)
    if launch.INTERPRETED:
        print("compile_gate: unset TRITON_INTERPRET, the interpreter compiles nothing", file=sys.stderr)
        return 2
    work = [
        (case, arch)
        for arch in options.arch
        for case in kernel_cases(arch, options.all_configs)
        if options.only in case.name
    ]
    if not work:
        print(f"compile_gate: no kernel's name contains {options.only!r}", file=sys.stderr)
        return 2
    print(f"Triton {triton.__version__}")
    print(f"{'kernel':36} {'arch':5} {'registers':>9} {'spilled':>7} {'shared/K':>9}", end="")
    print("".join(f"{name:>8}" for name in _INSTRUCTIONS))
    n_broken = 0
    for case, arch in work:
        compiled = compile_case(case, arch)
        broken = violations(case, arch, compiled)
        n_broken += bool(broken)
        print(_row(case, arch, compiled, broken), flush=True)
    print(f"{len(work)} compiled, {n_broken} over budget")
    return 1 if n_broken else 0


if __name__ == "__main__":
    sys.exit(main())
