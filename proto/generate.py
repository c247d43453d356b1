"""Generates the Python stubs beside the .proto files; `--check` says whether they are current.

Run by `make proto`; the layout tests run the check, so a changed contract without its stubs fails.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

SOURCE_ROOT = Path(__file__).resolve().parent / "src"


def generate(out: Path) -> None:
    """Writes the stubs of every contract under `out`; raises RuntimeError when protoc refuses one."""
    include = importlib.resources.files("grpc_tools") / "_proto"
    protos = sorted(str(p.relative_to(SOURCE_ROOT)) for p in SOURCE_ROOT.rglob("*.proto"))
    args = ["protoc", f"-I{SOURCE_ROOT}", f"-I{include}"]
    # The type-stub plug-ins are scripts of this environment, which need not be on the PATH.
    for plugin in ("mypy", "mypy_grpc"):
        args.append(f"--plugin=protoc-gen-{plugin}={Path(sys.executable).parent}/protoc-gen-{plugin}")
    args += [f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out={out}", f"--mypy_grpc_out={out}"]
    if protoc.main(args + protos) != 0:
        raise RuntimeError("protoc failed; its message stands above")
    # protoc writes a service file for contracts without a service, too; nobody imports those.
    for empty in (out / "twolane" / "v1").glob("types_pb2_grpc.*"):
        empty.unlink()


def stale(generated: Path) -> list[str]:
    """Names the stubs that differ from freshly generated ones."""
    fresh = sorted(p.relative_to(generated) for p in generated.rglob("*_pb2*"))
    return [
        str(p)
        for p in fresh
        if not (SOURCE_ROOT / p).exists() or not filecmp.cmp(generated / p, SOURCE_ROOT / p, shallow=False)
    ]


def main() -> int:
    """Generates in place, or with --check compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a committed stub is stale")
    if not parser.parse_args().check:
        generate(SOURCE_ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        if differing := stale(Path(scratch)):
            print("stale stubs, run `make proto`:", *differing, sep="\n  ")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
