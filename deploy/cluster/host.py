"""What the machine under a test cluster must have, and what is given back to it in the end.

Programs come from the distribution; cgroups are the only thing that outlives the namespaces of a node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from deploy.cluster.enclosure import run
from deploy.cluster.network import wire_of
from deploy.cluster.processes import StartError

INSTALL_TIMEOUT_S = 600.0
CGROUP_END_S = 10.0
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    # The bundled Redis of the chart runs from it.
    "redis-server": "redis-server",
}
_OWN = "twolane-node-"


def refusal() -> str:
    """Why this machine can't run real nodes; empty when it can, as far as can be told without trying."""
    if os.geteuid() != 0:
        return "real nodes take root"
    if not _hierarchies():
        return "real nodes take cgroups that can be written"
    missing = [name for name in ("unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"real nodes take {', '.join(missing)} (util-linux)"
    if (_missing_packages() or cni_folder() is None) and shutil.which("apt-get") is None:
        return (
            f"real nodes take {', '.join(_PACKAGES)} and the CNI plugins, and there is no apt-get to get them"
        )
    return ""


def install() -> None:
    """Installs what is missing, with the distribution's own tool.

    Raises:
        StartError: it fails.
    """
    wanted = _missing_packages()
    if cni_folder() is None:
        wanted.append("containernetworking-plugins")
    if not wanted:
        return
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    run("apt-get", "update", "-qq", timeout_s=INSTALL_TIMEOUT_S)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, timeout_s=INSTALL_TIMEOUT_S)
    if cni_folder() is None or _missing_packages():
        raise StartError(f"still missing after the installation: {_missing_packages() or 'CNI plugins'}")


def _missing_packages() -> list[str]:
    return [package for program, package in _PACKAGES.items() if shutil.which(program) is None]


def cni_folder() -> str | None:
    """Where the CNI plugins lie."""
    return next((folder for folder in CNI_FOLDERS if Path(folder, "bridge").exists()), None)


def own_cgroup(name: str) -> str:
    """The cgroup of a node of this process, made in every hierarchy."""
    group = f"{_OWN}{os.getpid()}-{name}"
    for hierarchy in _hierarchies():
        folder = hierarchy / group
        folder.mkdir(exist_ok=True)
        _inherit_cpus(hierarchy, folder)
    return f"/{group}"


def _inherit_cpus(hierarchy: Path, folder: Path) -> None:
    """A new group of the first cgroup version may use no processor before it is told which."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (folder / name).exists() and not (folder / name).read_text().strip():
            (folder / name).write_text((hierarchy / name).read_text())


def remove_cgroup(group: str) -> None:
    """Removes a cgroup and all below it once its last process has ended; waits for that for a while."""
    deadline = time.monotonic() + CGROUP_END_S
    while True:
        left = [hierarchy / group.strip("/") for hierarchy in _hierarchies()]
        left = [folder for folder in left if folder.exists() and not _remove_tree(folder)]
        if not left or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def _remove_tree(folder: Path) -> bool:
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(root)
    return not folder.exists()


def sweep(temporary: Path) -> None:
    """Removes what crashed runs left: cgroups and folders whose process is gone."""
    for hierarchy in _hierarchies():
        for folder in hierarchy.glob(f"{_OWN}*"):
            if _orphaned(folder.name):
                _remove_tree(folder)
    for folder in temporary.glob(f"{_OWN}*"):
        if _orphaned(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def leftovers(pid: int | None = None) -> list[str]:
    """What a cluster of a process, by default this one, has left on the machine: empty when all is well."""
    pid = pid or os.getpid()
    mine = f"{_OWN}{pid}"
    found = [str(path) for root in _hierarchies() for path in root.glob(f"{mine}-*")]
    found += [str(path) for path in Path(tempfile.gettempdir()).glob(mine)]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if mine in line]
    return found + [str(path) for path in Path("/sys/class/net").glob(wire_of(pid))]


def own_folder(temporary: Path) -> Path:
    """A new folder that a later run knows as ours."""
    folder = temporary / f"{_OWN}{os.getpid()}"
    folder.mkdir(mode=0o700)
    return folder


def _orphaned(name: str) -> bool:
    pid = name.removeprefix(_OWN).split("-")[0]
    return pid.isdigit() and not Path("/proc", pid).exists()


def _hierarchies() -> list[Path]:
    """Roots of every cgroup hierarchy that can be written."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    folders = [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    return [folder for folder in folders if os.access(folder, os.W_OK) and not _read_only(folder)]


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
