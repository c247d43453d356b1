"""`twolane operator` as a process of its own, with the rights of the chart and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from deploy.cluster.binaries import KUBERNETES, ensure
from tests.operator.cluster.kube import ROOT, Json, Kube, Refused

IMAGE = "twolane:test"
ACCOUNT = "twolane-operator"


def chart(namespace: str, *args: str) -> list[Json]:
    """The objects of the chart as helm renders them."""
    command = [str(ensure("helm")["helm"]), "template", "twolane", str(ROOT / "helm" / "twolane")]
    # Without a cluster a helm of our own build takes an old one for granted.
    command += ["--namespace", namespace, "--kube-version", KUBERNETES, *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return [body for body in yaml.safe_load_all(done.stdout) if body]


def operator_kubeconfig(kube: Kube, namespace: str, folder: Path, *args: str) -> Path:
    """Installs the chart's account and rights for one namespace, and returns that account's kubeconfig.

    Args:
        kube: an administrator's client.
        namespace: where.
        folder: for the kubeconfig.
        args: further arguments of helm, such as values that give rights.
    """
    kinds = ("ServiceAccount", "Role", "RoleBinding", "Lease")
    bodies = [
        body
        for body in chart(namespace, "--set", f"watchNamespaces={{{namespace}}}", *args)
        if body["kind"] in kinds
    ]
    kube.kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(bodies))
    return account_kubeconfig(kube, namespace, folder)


def account_kubeconfig(kube: Kube, namespace: str, folder: Path) -> Path:
    """A kubeconfig of the operator's account."""
    token = kube.kubectl("create", "token", ACCOUNT, "--namespace", namespace, "--duration=1h").strip()
    access = yaml.safe_load(kube.kubeconfig.read_text(encoding="utf-8"))
    for user in access["users"]:
        user["user"] = {"token": token}
    path = folder / "operator-kubeconfig"
    path.write_text(yaml.safe_dump(access), encoding="utf-8")
    return path


class OperatorProcess:
    """One replica; it works for the namespace of its lease alone, or `everywhere`."""

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        folder: Path,
        identity: str = "a",
        *,
        everywhere: bool = False,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.log = folder / f"operator-{identity}.log"
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._args = ["--image", IMAGE, "--lease-namespace", namespace]
        self._args += [] if everywhere else ["--namespaces", namespace]
        self._args += ["--http-port", "0", "--identity", identity, "--resync-s", "20", *flags]
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; it may take a moment until it leads."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "twolane.cli.main", "operator", *self._args]
            self._child = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child is not None and self._child.poll() is None

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """It does nothing meanwhile, as a process that gets no processor; it sees later what it missed."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._child.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Asks it to end; returns its exit status."""
        assert self._child is not None
        self._child.terminate()
        return self._child.wait(40)

    def kill(self) -> None:
        """Ends it as a lost node would."""
        assert self._child is not None
        self._child.kill()
        self._child.wait(20)

    def said(self, words: str) -> bool:
        """Whether its log has the words."""
        return words in self.log.read_text(encoding="utf-8")
