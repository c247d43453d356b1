"""A Kubernetes control plane for tests: etcd, API server, controllers, scheduler, kwok nodes.

On loopback nothing here needs root, containers or images: pods run nowhere, kwok plays their kubelets.
`real_cluster` gives it a place that real nodes reach. Everything lies in one folder, which the caller
removes.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.cluster.binaries import ensure
from deploy.cluster.processes import Process, free_ports

READY_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 30.0
# Known to loopback alone, for the minutes of a test.
_ADMIN_TOKEN = "admin-of-a-throwaway-cluster"
_ADMIN = "twolane-test-admin"
_PROXY = "aggregator"
# Of its clients only the one under test shall be what a test waits for.
_UNHURRIED: dict[str, Any] = {"kube-api-qps": 500, "kube-api-burst": 1000}
BRAIN = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
PARTS = (*BRAIN, "kwok")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a control plane runs.

    Attributes:
        address: address its programs listen on.
        services: range of the addresses of Services.
        enter: command that starts a program there.
        nodes: names of real nodes, each with a token of its own.
    """

    address: str = "127.0.0.1"
    services: str = "10.96.0.0/16"
    enter: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class ControlPlane:
    """One control plane.

    Attributes:
        url: address of the API server.
        kubeconfig: file with the administrator's credentials.
    """

    def __init__(self, folder: Path, parts: tuple[str, ...] = PARTS, place: Place | None = None) -> None:
        """Chooses ports and writes credentials below `folder`; builds what the cache lacks."""
        self._folder = folder
        self._place = place or Place()
        self._programs = ensure(*parts)
        self._ports = dict(zip(("client", "peer", "api"), free_ports(3), strict=True))
        self.url = f"https://{self._place.address}:{self._ports['api']}"
        self.kubeconfig = folder / "kubeconfig"
        self._write_credentials()
        self._processes = {name: Process(name, self._command(name), folder) for name in parts}

    def start(self) -> None:
        """Starts everything and returns once the API server is ready.

        Raises:
            StartError: a program does not come up in time.
        """
        for process in self._processes.values():
            process.start()
            if process.name == "etcd":
                process.wait_for(self._etcd_answers, READY_TIMEOUT_S)
            if process.name == "kube-apiserver":
                process.wait_for(self._api_answers, READY_TIMEOUT_S)

    def stop(self) -> None:
        """Ends everything, the API server before its store."""
        for process in reversed(self._processes.values()):
            process.stop()

    def stop_part(self, name: str) -> None:
        """Ends one program, as a crash would leave the others."""
        self._processes[name].stop()

    def start_part(self, name: str) -> None:
        """Starts one program again, and those that could not live without it."""
        process = self._processes[name]
        process.start()
        if name == "kube-apiserver":
            process.wait_for(self._api_answers, READY_TIMEOUT_S)
        for other in self._processes.values():
            other.start()

    def pids(self) -> dict[str, int]:
        """Process ids of its programs, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def kubeconfig_of(self, node: str) -> Path:
        """File with the credentials of one real node."""
        return self._folder / f"kubeconfig-{node}"

    def _write_credentials(self) -> None:
        folder, nodes = self._folder, self._place.nodes
        lines = [f'{_ADMIN_TOKEN},{_ADMIN},1,"system:masters"']
        lines += [f'{_node_token(name)},system:node:{name},{name},"system:nodes"' for name in nodes]
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        key = folder / "service-accounts.key"
        done = ["openssl", "genrsa", "-out", str(key), "2048"]
        subprocess.run(done, check=True, capture_output=True, timeout=CALL_TIMEOUT_S)
        # Shows servers of further APIs that it is the API server who asks; signed by itself, trusted as such.
        proof = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={_PROXY}"]
        proof += ["-keyout", str(folder / "aggregator.key"), "-out", str(folder / "aggregator.crt")]
        subprocess.run(["openssl", *proof], check=True, capture_output=True, timeout=CALL_TIMEOUT_S)
        self._write_kubeconfig(self.kubeconfig, _ADMIN_TOKEN)
        for name in nodes:
            self._write_kubeconfig(self.kubeconfig_of(name), _node_token(name))

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "caller"}}],
            # The API server makes its own certificate; what it is worth ends with the test.
            "clusters": [{"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "caller", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(access), encoding="utf-8")

    def _command(self, name: str) -> list[str]:
        flags: dict[str, dict[str, Any]] = {
            "etcd": self._etcd_flags(),
            "kube-apiserver": self._api_flags(),
            "kube-controller-manager": {
                "kubeconfig": self.kubeconfig,
                # The API server signs its certificate itself; pods trust what is in this file.
                "root-ca-file": self._folder / "certificates" / "apiserver.crt",
                "service-account-private-key-file": self._folder / "service-accounts.key",
                "use-service-account-credentials": "true",
                "leader-elect": "false",
                "secure-port": 0,
                # A busy machine must not make the test's nodes look dead.
                "node-monitor-grace-period": "10m",
                **_UNHURRIED,
            },
            "kube-scheduler": {
                "kubeconfig": self.kubeconfig,
                "leader-elect": "false",
                "secure-port": 0,
                **_UNHURRIED,
            },
            "kwok": {
                "kubeconfig": self.kubeconfig,
                "manage-all-nodes": "false",
                "manage-nodes-with-annotation-selector": "kwok.x-k8s.io/node=fake",
                "cidr": "10.0.0.1/8",
                "node-ip": "10.0.0.1",
                "node-port": 0,
                "node-lease-duration-seconds": 120,
            },
        }
        arguments = [f"--{flag}={value}" for flag, value in flags[name].items()]
        return [*self._place.enter, str(self._programs[name]), *arguments]

    def _etcd_flags(self) -> dict[str, Any]:
        address = self._place.address
        client, peer = (f"http://{address}:{self._ports[name]}" for name in ("client", "peer"))
        return {
            "name": "test",
            "data-dir": self._folder / "etcd",
            "unsafe-no-fsync": "true",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"test={peer}",
        }

    def _api_flags(self) -> dict[str, Any]:
        key, address = self._folder / "service-accounts.key", self._place.address
        return {
            "etcd-servers": f"http://{address}:{self._ports['client']}",
            "bind-address": address,
            "advertise-address": address,
            "secure-port": self._ports["api"],
            "cert-dir": self._folder / "certificates",
            "token-auth-file": self._folder / "tokens.csv",
            "authorization-mode": "Node,RBAC",
            # The names of nodes resolve nowhere.
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": self._place.services,
            # An address of loopback is none that pods could use.
            "endpoint-reconciler-type": "master-count" if self._place.nodes else "none",
            "proxy-client-cert-file": self._folder / "aggregator.crt",
            "proxy-client-key-file": self._folder / "aggregator.key",
            "requestheader-client-ca-file": self._folder / "aggregator.crt",
            "requestheader-allowed-names": _PROXY,
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            # There is no kube-proxy where it runs.
            "enable-aggregator-routing": "true",
            "enable-priority-and-fairness": "true",
            "watch-cache": "true",
        }

    def _etcd_answers(self) -> bool:
        return _answers(f"http://{self._place.address}:{self._ports['client']}/health", {})

    def _api_answers(self) -> bool:
        return _answers(f"{self.url}/readyz", {"Authorization": f"Bearer {_ADMIN_TOKEN}"})


def _node_token(name: str) -> str:
    return f"node-{name}-of-a-throwaway-cluster"


def _answers(url: str, headers: dict[str, str]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=2.0, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def kwok_node(name: str, gpus: int = 8, product: str = "NVIDIA-H100-80GB-HBM3") -> str:
    """A node for kwok, as JSON: any number of devices, none of them there."""
    labels = {"kubernetes.io/hostname": name, "type": "kwok", "nvidia.com/gpu.product": product}
    room = {"cpu": "64", "memory": "512Gi", "pods": "500", "nvidia.com/gpu": str(gpus)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
            "status": {"allocatable": room, "capacity": room, "nodeInfo": {"kubeletVersion": "fake"}},
        }
    )
