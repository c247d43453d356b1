"""One real node: containerd with runc, kubelet and kube-proxy in an enclosure of their own.

`real_cluster` wires it up. Its mounts, pods and packet filters end with the enclosure; the cgroup and the
folder are what `stop` has left to remove.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from deploy.cluster import host, images
from deploy.cluster.binaries import ensure
from deploy.cluster.enclosure import Enclosure
from deploy.cluster.network import Network
from deploy.cluster.processes import Process, StartError

READY_TIMEOUT_S = 60.0
# An image with the tensor library has gigabytes.
IMPORT_TIMEOUT_S = 600.0
_SOCKET = "/run/containerd/containerd.sock"
# The kubelet wants these values and would set them for the whole machine: it reads them from files of ours.
_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What a node is told.

    Attributes:
        name: its name in the cluster.
        index: its number, from which addresses follow.
        network: the cluster's network.
        kubeconfig: its own credentials.
        proxy_kubeconfig: credentials of kube-proxy.
        image: reference of the product's image.
        runtime: what containers see by default: `machine`, the programs of this machine, for images that are
            nearly empty, or `plain`, what their image has. A RuntimeClass of the other name asks for it.
    """

    name: str
    index: int
    network: Network
    kubeconfig: Path
    proxy_kubeconfig: Path
    image: str
    runtime: Literal["machine", "plain"] = "machine"

    @property
    def snapshotter(self) -> str:
        """How containers get files: copies work on every file system, but whole images are too large."""
        return "native" if self.runtime == "machine" else "overlayfs"


class Node:
    """One node; start it once the API server answers."""

    def __init__(self, plan: NodePlan, folder: Path) -> None:
        """Writes its files below `folder`, which exists; builds what the cache lacks."""
        self.plan, self._folder = plan, folder
        self._programs = ensure("kubelet", "kube-proxy", "pause")
        self._cgroup = host.own_cgroup(plan.name)
        for name in ("lib", "log", "cni", "sys"):
            (folder / name).mkdir()
        self.enclosure = Enclosure(plan.name, folder, self._setup())
        self._processes: dict[str, Process] = {}

    def _setup(self) -> str:
        folder = self._folder
        lines = [
            "mount -t proc proc /proc",
            "mount --make-rshared /",
            "mount -t tmpfs tmpfs /run",
            f"mount --bind {folder}/lib /var/lib",
            f"mount --bind {folder}/log /var/log",
        ]
        for name, value in _TUNABLES.items():
            file = folder / "sys" / name.replace("/", ".")
            file.write_text(f"{value}\n", encoding="utf-8")
            lines.append(f"[ ! -e /proc/sys/{name} ] || mount --bind {file} /proc/sys/{name}")
        return "\n".join(lines)

    def start(self) -> None:
        """Starts containerd, brings the images in, then the kubelet and kube-proxy.

        Raises:
            StartError: a program does not come up in time.
        """
        folder, plan = self._folder, self.plan
        (folder / "containerd.toml").write_text(self._containerd_config(), encoding="utf-8")
        base: dict[str, Any] = json.loads(self.enclosure.run("ctr", "oci", "spec"))
        for name, seen in (("plain", {}), ("machine", images.mounts(folder.parent / "sources"))):
            spec = json.dumps(_specification(base, seen))
            (folder / f"{name}.json").write_text(spec, encoding="utf-8")
        containerd = self._run("containerd", "containerd", "--config", str(folder / "containerd.toml"))
        containerd.wait_for(lambda: self._answers("ctr", "--address", _SOCKET, "version"), READY_TIMEOUT_S)
        self._bring_images()
        config = folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(self._kubelet_config()), encoding="utf-8")
        kubelet = [str(self._programs["kubelet"]), f"--config={config}", f"--kubeconfig={plan.kubeconfig}"]
        kubelet += [f"--hostname-override={plan.name}", f"--node-ip={plan.network.node(plan.index)}"]
        self._run("kubelet", *kubelet)
        # Zeros leave the tracking tables of the machine as they are.
        limits = ("max-per-core", "min", "tcp-timeout-established", "tcp-timeout-close-wait")
        proxy = [str(self._programs["kube-proxy"]), f"--kubeconfig={plan.proxy_kubeconfig}"]
        proxy += [f"--hostname-override={plan.name}", f"--cluster-cidr={plan.network.all_pods}"]
        self._run("kube-proxy", *proxy, *(f"--conntrack-{name}=0" for name in limits))

    def stop(self) -> None:
        """Ends everything on it at once, as a power cut would, and removes its cgroup."""
        self.enclosure.stop()
        for process in self._processes.values():
            process.stop()
        host.remove_cgroup(self._cgroup)

    def stop_part(self, name: str) -> None:
        """Ends containerd, kubelet or kube-proxy; pods go on."""
        self._processes[name].stop()

    def start_part(self, name: str) -> None:
        """Starts it again."""
        self._processes[name].start()

    def logs(self) -> list[Path]:
        """Logs of its programs."""
        return [process.log for process in self._processes.values()]

    def _run(self, name: str, *command: str) -> Process:
        process = self._processes[name] = self.enclosure.process(name, *command)
        process.start()
        return process

    def _answers(self, *command: str) -> bool:
        return _succeeds(lambda: self.enclosure.run(*command, timeout_s=5.0))

    def _bring_images(self) -> None:
        pause, product, redis = (self._folder / f"{name}.tar" for name in ("pause", "product", "redis"))
        images.write_pause(pause, self._programs["pause"])
        images.write_product(product, self.plan.image)
        images.write_redis(redis)
        for path in (pause, product, redis):
            self.import_image(path)

    def import_image(self, path: Path) -> None:
        """Brings an image in from a tar file.

        Raises:
            StartError: containerd refuses it.
        """
        importing = ("ctr", "--address", _SOCKET, "--namespace", "k8s.io", "images", "import")
        kind = ("--snapshotter", self.plan.snapshotter)
        self.enclosure.run(*importing, *kind, str(path), timeout_s=IMPORT_TIMEOUT_S)

    def _containerd_config(self) -> str:
        cni = self._folder / "cni"
        (cni / "10-pods.conflist").write_text(json.dumps(self._cni_config()), encoding="utf-8")
        return f"""version = 2
# It would make a folder on the machine.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
# Without CAP_SYS_RESOURCE nobody may make a container less likely to be killed than itself.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{host.cni_folder()}"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{self.plan.snapshotter}"
default_runtime_name = "{self.plan.runtime}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.machine]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{self._folder / "machine.json"}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.plain]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{self._folder / "plain.json"}"
"""

    def _cni_config(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self.plan.network.pods(self.plan.index)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        # A pod may reach itself by the address of its Service.
        bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge | {"ipam": addresses}, ports]}

    def _kubelet_config(self) -> dict[str, Any]:
        resolver = self._folder / "resolv.conf"
        resolver.write_text(f"nameserver {self.plan.network.hub}\n", encoding="utf-8")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [self.plan.network.hub],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            # Only this machine and the cluster's own pods have a way to it.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "evictionHard": {"memory.available": "64Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
        }


def _specification(base: dict[str, Any], mounts: dict[Path, Path]) -> dict[str, Any]:
    """A container's base specification, with folders of this machine where an image needs them."""
    # Limits are inherited: without CAP_SYS_RESOURCE they can't be raised.
    process = {name: value for name, value in base["process"].items() if name != "rlimits"}
    bound = {"type": "bind", "options": ["rbind", "ro", "nosuid", "nodev"]}
    seen = [{"destination": str(place), "source": str(source), **bound} for place, source in mounts.items()]
    if mounts:
        shared = {"destination": str(images.COMPILED), "source": str(images.compiled_folder())}
        seen.append({**shared, **bound, "options": ["rbind", "rw", "nosuid", "nodev"]})
    return {**base, "process": process, "mounts": [*base["mounts"], *seen]}


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except StartError:
        return False
    return True
