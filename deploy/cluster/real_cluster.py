"""A cluster of real nodes on this machine, for tests and to play with; needs root, leaves nothing behind.

Each node is a set of Linux namespaces with containerd, a kubelet and kube-proxy; the control plane and a
name server share another network. `python -m deploy.cluster node-up` and the node tests use it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from deploy.cluster import host
from deploy.cluster.binaries import ensure
from deploy.cluster.control_plane import BRAIN, ControlPlane, Place
from deploy.cluster.enclosure import Enclosure, run
from deploy.cluster.network import free_network, route_between, wire_hub, wire_node
from deploy.cluster.node import Node, NodePlan
from deploy.cluster.processes import Process, StartError

IMAGE = "twolane.invalid/twolane:node"
READY_TIMEOUT_S = 90.0
NODES = ("node-a", "node-b")


class RealCluster:
    """A control plane and real nodes.

    Attributes:
        kubeconfig: file with the administrator's credentials, once started.
        nodes: the nodes by name, once started.
    """

    def __init__(
        self, names: tuple[str, ...] = NODES, runtime: Literal["machine", "plain"] = "machine"
    ) -> None:
        """Nothing starts yet.

        Args:
            names: of the nodes.
            runtime: what containers see: the programs of this machine, or their image alone.

        Raises:
            StartError: this machine can't run real nodes.
        """
        if reason := host.refusal():
            raise StartError(reason)
        self._names = names
        self._runtime: Literal["machine", "plain"] = runtime
        self.nodes: dict[str, Node] = {}
        self._folder: Path | None = None
        self._hub: Enclosure | None = None
        self._plane: ControlPlane | None = None
        self._resolver: Process | None = None
        self._wire = ""

    @property
    def kubeconfig(self) -> Path:
        """File with the administrator's credentials."""
        return self.plane.kubeconfig

    @property
    def plane(self) -> ControlPlane:
        """The control plane, whose parts can be stopped and started."""
        assert self._plane is not None, "start first"
        return self._plane

    @property
    def folder(self) -> Path:
        """Where logs and files lie until `stop`."""
        assert self._folder is not None, "start first"
        return self._folder

    def start(self) -> None:
        """Starts everything; returns once every node is ready.

        Raises:
            StartError: something does not come up in time; nothing of it is left.
        """
        host.install()
        temporary = Path(tempfile.gettempdir())
        host.sweep(temporary)
        self._folder = host.own_folder(temporary)
        try:
            self._start(self._folder)
        except BaseException:
            self.stop()
            raise

    def _start(self, folder: Path) -> None:
        network = free_network()
        hub = self._hub = Enclosure("hub", folder)
        hub.start()
        wire_hub(network, hub)
        self._wire = network.wire
        place = Place(network.hub, network.services, tuple(hub.enter()), self._names)
        self._plane = ControlPlane(folder, BRAIN, place)
        self._plane.start()
        self._start_resolver(hub, folder)
        for index, name in enumerate(self._names):
            own = folder / name
            own.mkdir()
            credentials = self._plane.kubeconfig_of(name)
            access = (credentials, self.kubeconfig)
            node = Node(NodePlan(name, index, network, *access, IMAGE, self._runtime), own)
            self.nodes[name] = node
            node.enclosure.start()
            wire_node(network, hub, node.enclosure, index)
        route_between(network, [node.enclosure for node in self.nodes.values()])
        for node in self.nodes.values():
            node.start()
        self._wait_for_nodes()

    def _start_resolver(self, hub: Enclosure, folder: Path) -> None:
        rules = f"""\
.:53 {{
    errors
    cache 5
    kubernetes cluster.local {{
        kubeconfig {self.kubeconfig}
    }}
}}
"""
        (folder / "Corefile").write_text(rules, encoding="utf-8")
        program = str(ensure("coredns")["coredns"])
        self._resolver = hub.process("coredns", program, "-conf", str(folder / "Corefile"))
        self._resolver.start()

    def _wait_for_nodes(self) -> None:
        names = [f"node/{name}" for name in self._names]
        for name in names:
            self._kubectl("wait", "--for=create", name)
        self._kubectl("wait", "--for=condition=Ready", *names)

    def _kubectl(self, *args: str) -> str:
        program = str(ensure("kubectl")["kubectl"])
        wait = f"--timeout={READY_TIMEOUT_S:.0f}s"
        return run(program, "--kubeconfig", str(self.kubeconfig), *args, wait, timeout_s=READY_TIMEOUT_S + 5)

    def stop(self) -> None:
        """Ends everything and removes what it made."""
        for node in self.nodes.values():
            node.stop()
        if self._resolver is not None:
            self._resolver.stop()
        if self._plane is not None:
            self._plane.stop()
        if self._hub is not None:
            self._hub.stop()
        if self._wire:
            # It goes with the namespace too, but the kernel takes its time.
            with contextlib.suppress(StartError):
                run("ip", "link", "delete", self._wire)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
