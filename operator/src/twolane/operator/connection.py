"""Finds the cluster that an operator process works for."""

from __future__ import annotations

from kubernetes.aio import client, config

from twolane.core.errors import ConfigError
from twolane.operator.cluster import Cluster
from twolane.operator.metrics import OperatorMetrics


async def connect(metrics: OperatorMetrics) -> Cluster:
    """Finds the cluster: the pod's service account, or else KUBECONFIG or ~/.kube/config.

    Raises:
        ConfigError: there is neither.
    """
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            raise ConfigError(
                f"no Kubernetes cluster to work for: {error}; run inside a pod, or set KUBECONFIG"
            ) from error
    # Each watch keeps a connection of its own; MAX_IN_FLIGHT bounds the others.
    configuration.connection_pool_maxsize = 0
    return Cluster(client.ApiClient(configuration), metrics)


def namespace_of_pod() -> str:
    """The namespace this process runs in; "" outside of a cluster."""
    path = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
