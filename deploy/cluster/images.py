"""Container images of the test cluster: nearly empty, since pods see the programs of this machine.

The PyTorch of a real image has gigabytes; here `node` mounts what the image needs into every container.
Written as tar files that `ctr images import` takes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from deploy.cluster.binaries import cache_folder

PAUSE = "twolane.invalid/pause:1"
REDIS = "twolane.invalid/redis:node"
ROOT = Path(__file__).parents[2]
# Under /opt: pods lay a volume of their own over /tmp, and a checkout may lie there.
INSIDE = Path("/opt/twolane")
"""Where containers see the environment and the sources."""
_USER = 65532
COMPILED = INSIDE / "compiled"
"""Where pods share what the engine compiles for this processor: each would take a minute for it."""
_SOURCES = ("services", "operator", "proto", "kernels")
_SCRIPT = f"""#!{INSIDE}/environment/bin/python3 -P
import sys

from twolane.cli.main import main

sys.exit(main())
"""


def mounts(folder: Path) -> dict[Path, Path]:
    """What a container of the product's image sees of this machine, read-only: source by place inside.

    The product's own sources are copied into `folder` first, with the times that their compiled
    forms were made for: as with an image, what runs does not change when the checkout does.
    """
    python, environment = Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()
    seen = [Path("/usr")]
    if not python.is_relative_to("/usr"):
        seen.append(python)
    # Folders of an old layout, where they are not links into /usr.
    seen += [path for path in map(Path, ("/lib", "/lib64")) if path.exists() and not path.is_symlink()]
    for name in _SOURCES:
        if not (folder / name).exists():
            shutil.copytree(ROOT / name / "src", folder / name)
    ours = {INSIDE / "environment": environment} | {INSIDE / name: folder / name for name in _SOURCES}
    # Where the images that are built have it.
    ours[INSIDE / "demo-model"] = folder / "services" / "twolane" / "demo_model"
    return {path: path for path in seen} | ours


def compiled_folder() -> Path:
    """The folder of this machine behind `COMPILED`; it outlives clusters, and pods write to it."""
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o1777)
    return folder


def write_pause(path: Path, program: Path) -> None:
    """The image that holds a pod's namespaces: one static program."""
    _write(path, PAUSE, _one_program(program), {"Entrypoint": [f"/{program.name}"]})


def write_program(path: Path, reference: str, program: Path) -> None:
    """The image of one static program, which lies in its root folder."""
    config = {"Entrypoint": [f"/{program.name}"], "User": str(_USER)}
    _write(path, reference, _one_program(program), config)


def _one_program(program: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        layer.add(program, program.name, filter=_plain)
    return content.getvalue()


def write_product(path: Path, reference: str) -> None:
    """The product's image, which has `twolane` on its PATH once `mounts` are there."""
    environment = [
        f"PATH={INSIDE}/bin:{INSIDE}/environment/bin:/usr/local/bin:/usr/bin:/bin",
        f"PYTHONPATH={':'.join(str(INSIDE / name) for name in _SOURCES)}",
        "PYTHONDONTWRITEBYTECODE=1",
        f"TWOLANE_COMPILED_CACHE_DIR={COMPILED}",
    ]
    program = f"{INSIDE}/bin/twolane".lstrip("/")
    config = {"Env": environment, "User": str(_USER)}
    _write(path, reference, _nearly_empty({program: _SCRIPT}), config)


def write_redis(path: Path) -> None:
    """An image for the chart's Redis: that of this machine's distribution, once `mounts` are there."""
    _write(path, REDIS, _nearly_empty({}), {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]})


def _nearly_empty(programs: dict[str, str]) -> bytes:
    """A layer with programs, users and the links of a root folder whose /usr is mounted."""
    files = {
        "etc/passwd": f"root:x:0:0::/:/bin/false\ntwolane:x:{_USER}:{_USER}::/tmp:/bin/false\n",
        "etc/group": f"root:x:0:\ntwolane:x:{_USER}:\n",
        "etc/nsswitch.conf": "hosts: files dns\n",
        **programs,
    }
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755 if name in programs else 0o644
            layer.addfile(entry, io.BytesIO(text.encode()))
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(f"/{name}").lstrip("/")
                layer.addfile(entry)
    return content.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.uid, entry.gid, entry.mtime = 0o755, 0, 0, 0
    return entry


def _write(path: Path, reference: str, layer: bytes, config: dict[str, Any]) -> None:
    digest = hashlib.sha256(layer).hexdigest()
    described = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    listed = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    parts = {
        "config.json": json.dumps(described).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(listed).encode(),
    }
    with tarfile.open(path, "w") as image:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            image.addfile(entry, io.BytesIO(data))
