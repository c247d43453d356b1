"""Builds the programs of the test control plane from their public Go modules, once per set of versions.

`python -m deploy.cluster build` and the cluster tests call `ensure`; it needs only Go and the module proxy.
Results live in the user's cache folder, so a second checkout on the same machine builds nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.cluster import go_programs, scaler_programs

KUBERNETES = "1.34.4"
ETCD = "3.6.5"
KWOK = "0.7.0"
HELM = "3.19.2"
COREDNS = "1.14.6"
CERT_MANAGER = "1.19.0"
KEDA = "2.20.2"
PROMETHEUS = "0.314.0"
EXTERNAL_METRICS = "1.36.0"

# A cold build of KEDA, which has clients of every cloud, on two cores that others use too.
BUILD_TIMEOUT_S = 5400
KUBE_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "kube-proxy",
)
_LINK = ("-trimpath", "-ldflags", "-s -w")


class BuildError(RuntimeError):
    """A program could not be built; the message ends with the compiler's last words."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program and how it comes about.

    Attributes:
        name: file name of the result.
        version: release it is built from.
        build: writes the program to the path it is given.
    """

    name: str
    version: str
    build: Callable[[Path], None]


def cache_folder() -> Path:
    """Where built programs are kept, by operating system and architecture."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "twolane" / "cluster" / f"{platform.system()}-{platform.machine()}".lower()


def ensure(*names: str) -> dict[str, Path]:
    """Paths of the named programs; builds those that the cache lacks.

    Raises:
        BuildError: Go is missing, or a build fails or takes longer than BUILD_TIMEOUT_S.
    """
    return {name: _ensure((PROGRAMS | SCALERS)[name]) for name in names}


def _ensure(program: Program) -> Path:
    # The file has the program's plain name: kubectl tells the API server its own as the writer of a field.
    target = cache_folder() / f"{program.name}-{program.version}" / program.name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
                made = Path(folder) / program.name
                program.build(made)
                os.replace(made, target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two runs on one machine must not build the same thing twice at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(*args: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    if shutil.which("go") is None:
        raise BuildError(
            "building the test control plane needs Go 1.24 or newer on the PATH (https://go.dev/dl)"
        )
    everything = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", **(environment or {})}
    try:
        done = subprocess.run(
            ["go", *args],
            cwd=folder,
            env=everything,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`go {' '.join(args)}` took longer than {BUILD_TIMEOUT_S} s") from error
    if done.returncode:
        raise BuildError(f"`go {' '.join(args)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _kube_go_mod(version: str, folder: Path) -> str:
    """A go.mod that requires one Kubernetes release.

    Kubernetes names its own staging modules by a path inside its repository; outside of it each must be
    replaced with the module published for the same release (v0.34.4 for v1.34.4).
    """
    listed = json.loads(_go("mod", "download", "-json", f"k8s.io/kubernetes@v{version}", folder=folder))
    upstream = Path(listed["GoMod"]).read_text(encoding="utf-8")
    language = re.search(r"^go\s+(\S+)$", upstream, flags=re.MULTILINE)
    if language is None:
        raise BuildError(f"the go.mod of Kubernetes {version} names no Go version")
    staging = re.findall(r"^\s*(k8s\.io/\S+)\s+=>\s+\./staging/", upstream, flags=re.MULTILINE)
    published = "v0." + version.split(".", maxsplit=1)[1]
    lines = ["module twolane.dev/test-cluster", f"go {language.group(1)}"]
    lines += [f"require k8s.io/kubernetes v{version}"]
    lines += [f"replace {module} => {module} {published}" for module in staging]
    return "\n".join(lines) + "\n"


def _build_kube(name: str) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        folder = target.parent
        (folder / "go.mod").write_text(_kube_go_mod(KUBERNETES, Path("/")), encoding="utf-8")
        imports = "".join(f'import _ "k8s.io/kubernetes/cmd/{program}"\n' for program in KUBE_PROGRAMS)
        source = f"//go:build programs\n\npackage programs\n\n{imports}"
        (folder / "programs.go").write_text(source, encoding="utf-8")
        _go("mod", "tidy", folder=folder)
        release = "-X k8s.io/component-base/version.gitVersion=v" + KUBERNETES
        link = ("-trimpath", "-ldflags", f"-s -w {release}")
        _go("build", *link, "-o", str(target), f"k8s.io/kubernetes/cmd/{name}", folder=folder)

    return build


def _own_main(source: str, *modules: str) -> Callable[[Path], None]:
    """Builds a main of our own against released modules."""

    def build(target: Path) -> None:
        folder = target.parent
        (folder / "main.go").write_text(source, encoding="utf-8")
        _go("mod", "init", f"twolane.dev/test-{target.name}", folder=folder)
        for module in modules:
            _go("get", module, folder=folder)
        if modules:
            _go("mod", "tidy", folder=folder)
        _go("build", *_LINK, "-o", str(target), ".", folder=folder)

    return build


def _install(package: str, version: str) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        where = {"GOBIN": str(target.parent)}
        _go("install", *_LINK, f"{package}@v{version}", folder=Path("/"), environment=where)

    return build


def _unpacked(module: str, version: str, folder: Path) -> Path:
    """A released module's own files, to be built as its authors do: with its own replacements."""
    listed = json.loads(_go("mod", "download", "-json", f"{module}@v{version}", folder=Path("/")))
    shutil.copytree(listed["Dir"], folder / "module", copy_function=shutil.copyfile)
    # The module cache is read-only, folders too.
    for path in [folder / "module", *(folder / "module").rglob("*")]:
        path.chmod(0o755)
    return folder / "module"


def _released(module: str, version: str, package: str, *tags: str) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        source = _unpacked(module, version, target.parent)
        how = ("-mod=mod", *_LINK, f"-tags={','.join(tags)}")
        _go("build", *how, "-o", str(target), package, folder=source)

    return build


def _keda_manifests(target: Path) -> None:
    """What KEDA's authors install without its webhooks, as one file."""
    source = _unpacked(_KEDA_MODULE, KEDA, target.parent)
    command = [str(ensure("kubectl")["kubectl"]), "kustomize", str(source / "config" / "minimal")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    target.write_text(done.stdout, encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


PROGRAMS: dict[str, Program] = {
    "etcd": Program(
        "etcd",
        f"{ETCD}-{_digest(go_programs.ETCD)}",
        _own_main(go_programs.ETCD, f"go.etcd.io/etcd/server/v3@v{ETCD}"),
    ),
    **{name: Program(name, KUBERNETES, _build_kube(name)) for name in KUBE_PROGRAMS},
    "kwok": Program("kwok", KWOK, _install("sigs.k8s.io/kwok/cmd/kwok", KWOK)),
    "coredns": Program(
        "coredns",
        f"{COREDNS}-{_digest(go_programs.COREDNS)}",
        _own_main(go_programs.COREDNS, f"github.com/coredns/coredns@v{COREDNS}"),
    ),
    "cert-manager": Program(
        "cert-manager",
        f"{CERT_MANAGER}-{_digest(go_programs.CERT_MANAGER)}",
        _own_main(
            go_programs.CERT_MANAGER,
            f"github.com/cert-manager/cert-manager@v{CERT_MANAGER}",
            *(f"k8s.io/{name}@v0.{KUBERNETES[2:]}" for name in ("api", "apimachinery", "client-go")),
        ),
    ),
    "pause": Program("pause", _digest(go_programs.PAUSE), _own_main(go_programs.PAUSE)),
    "helm": Program("helm", HELM, _install("helm.sh/helm/v3/cmd/helm", HELM)),
}
"""What `ensure` can build, by name, and `build` builds by default."""

_KEDA_MODULE = "github.com/kedacore/keda/v2"
SCALERS: dict[str, Program] = {
    "keda": Program("keda", KEDA, _released(_KEDA_MODULE, KEDA, "./cmd/operator")),
    "keda-adapter": Program("keda-adapter", KEDA, _released(_KEDA_MODULE, KEDA, "./cmd/adapter")),
    "keda.yaml": Program("keda.yaml", KEDA, _keda_manifests),
    "prometheus": Program(
        "prometheus",
        PROMETHEUS,
        # Its other ways to find what to read bring the clients of every cloud.
        _released(
            "github.com/prometheus/prometheus",
            PROMETHEUS,
            "./cmd/prometheus",
            "remove_all_sd",
            "enable_kubernetes_sd",
        ),
    ),
    "external-metrics": Program(
        "external-metrics",
        f"{EXTERNAL_METRICS}-{_digest(scaler_programs.EXTERNAL_METRICS)}",
        _own_main(
            scaler_programs.EXTERNAL_METRICS, f"sigs.k8s.io/custom-metrics-apiserver@v{EXTERNAL_METRICS}"
        ),
    ),
}
"""What else it can: scalers and what they ask, which take longer to build than all the rest."""
