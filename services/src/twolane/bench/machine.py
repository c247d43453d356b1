"""Facts of the machine and the versions a measurement was made with; every report carries them."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("twolane", "torch", "triton", "numpy", "grpcio", "aiohttp", "uvicorn")
COMMAND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Where and with what a run was made.

    Attributes:
        measured_at: UTC time in ISO form.
        cpu: model name.
        cores: cores this process may use.
        memory_gib: physical memory.
        gpus: names of the NVIDIA devices here.
        system: kernel and architecture.
        python: its version.
        packages: versions of the installed packages that matter.
        commit: git commit of the source, "-dirty" behind it if it was changed; "" outside of a checkout.
    """

    measured_at: str
    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]
    commit: str


def machine_facts() -> MachineFacts:
    """Looks at this machine; what can't be found out is left empty."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return MachineFacts(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        memory_gib=round(memory_bytes / 2**30, 1),
        gpus=tuple(_lines("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        commit=_commit(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    folder = str(Path(__file__).parent)
    commit = _lines("git", "-C", folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return ""
    dirty = _lines("git", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return commit[0] + ("-dirty" if dirty else "")


def _lines(*command: str) -> list[str]:
    """Output of a command, or nothing if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
