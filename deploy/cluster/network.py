"""Addresses and wires of a cluster of real nodes on this machine.

A bridge in the hub's namespace joins the host, the control plane and every node; the host gets one
interface and two kinds of routes, which go with the namespaces.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from deploy.cluster.enclosure import Enclosure, run
from deploy.cluster.processes import StartError

_PREFIX = 24
# Second bytes of 10.x.0.0/16; the first that this machine has no route to is taken.
_CHOICES = (213, 217, 221, 225, 229)


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of one cluster: 10.`byte`.0.0/16.

    Attributes:
        byte: second byte of all addresses.
    """

    byte: int

    @property
    def hub(self) -> str:
        """Address of the control plane and of the name server."""
        return f"10.{self.byte}.255.1"

    @property
    def host(self) -> str:
        """Address of this machine."""
        return f"10.{self.byte}.255.2"

    def node(self, index: int) -> str:
        """Address of a node."""
        return f"10.{self.byte}.255.{10 + index}"

    def pods(self, index: int) -> str:
        """Range of the pods of a node."""
        return f"10.{self.byte}.{index}.0/{_PREFIX}"

    @property
    def all_pods(self) -> str:
        """Range of the pods of all nodes."""
        return f"10.{self.byte}.0.0/18"

    @property
    def services(self) -> str:
        """Range of the addresses of Services."""
        return f"10.{self.byte}.128.0/18"

    @property
    def wire(self) -> str:
        """Name of the interface that the host gets."""
        return wire_of(os.getpid())


def wire_of(pid: int) -> str:
    """Name of the interface that this machine gets for the cluster of a process; 15 letters at most."""
    return f"twolane{pid}"


def free_network() -> Network:
    """A network that this machine does not use yet.

    Raises:
        StartError: all are taken.
    """
    used = [
        ipaddress.ip_network(word)
        for line in run("ip", "-4", "route", "show", "table", "all").splitlines()
        for word in line.removeprefix("broadcast ").removeprefix("local ").split()[:1]
        if word[0].isdigit()
    ]
    for byte in _CHOICES:
        ours = ipaddress.ip_network(f"10.{byte}.0.0/16")
        if not any(ours.overlaps(network) for network in used):
            return Network(byte)
    raise StartError(f"this machine has routes to every network tried: 10.x.0.0/16 with x in {_CHOICES}")


def wire_hub(network: Network, hub: Enclosure) -> None:
    """Joins this machine and the hub."""
    hub.run("ip", "link", "add", "bridge", "type", "bridge")
    hub.run("ip", "addr", "add", f"{network.hub}/{_PREFIX}", "dev", "bridge")
    hub.run("ip", "link", "set", "bridge", "up")
    run("ip", "link", "add", network.wire, "type", "veth", "peer", "name", "host", "netns", str(hub.pid))
    _plug(hub, "host")
    run("ip", "addr", "add", f"{network.host}/{_PREFIX}", "dev", network.wire)
    run("ip", "link", "set", network.wire, "up")


def wire_node(network: Network, hub: Enclosure, node: Enclosure, index: int) -> None:
    """Joins a node, and tells everybody the way to its pods."""
    port, address = f"node{index}", network.node(index)
    peer = ("type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
    hub.run("ip", "link", "add", port, *peer)
    _plug(hub, port)
    node.run("ip", "addr", "add", f"{address}/{_PREFIX}", "dev", "eth0")
    node.run("ip", "link", "set", "eth0", "up")
    node.run("ip", "route", "add", "default", "via", network.hub)
    hub.run("ip", "route", "add", network.pods(index), "via", address)
    run("ip", "route", "add", network.pods(index), "via", address)
    if index == 0:
        # Its kube-proxy translates what the host sends to a Service.
        run("ip", "route", "add", network.services, "via", address)


def route_between(network: Network, nodes: list[Enclosure]) -> None:
    """The ways from each node's pods to the pods of the others."""
    for index, node in enumerate(nodes):
        for other in range(len(nodes)):
            if other != index:
                node.run("ip", "route", "add", network.pods(other), "via", network.node(other))


def _plug(hub: Enclosure, port: str) -> None:
    hub.run("ip", "link", "set", port, "master", "bridge")
    hub.run("ip", "link", "set", port, "up")
