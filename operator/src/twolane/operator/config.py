"""Settings of the operator process; flags and TWOLANE_OPERATOR_* names follow from the fields."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from twolane.core.config import ProcessConfig
from twolane.operator.resources.model_deployment import Redis


class OperatorConfig(ProcessConfig):
    """One replica of the operator."""

    process: ClassVar[str] = "operator"

    image: str = Field(min_length=1)
    """Image of routers, brokers and workers whose ModelDeployment names none."""
    redis_secret: str = ""
    """Secret in each model's namespace with the Redis URL of brokers that name none; empty: no Redis."""
    redis_secret_key: str = "url"  # noqa: S105
    """Key of the URL in that Secret."""
    definitions_dir: Path | None = None
    """Folder with custom resource definitions that replace older installed ones; the chart mounts it."""
    tls_secrets: bool = False
    """Whether to be the authority of ModelDeployments with `tls.mode: operator`; needs rights on Secrets."""
    tls_cert_manager: bool = False
    """Whether to ask cert-manager for those with `tls.mode: certManager`; needs rights on Certificates."""
    namespaces: str = ""
    """Namespaces to work for, separated by commas; empty: the whole cluster."""
    leader_election: bool = True
    """Whether to wait until no other replica leads; without it there must be one replica."""
    lease_namespace: str = ""
    """Namespace of the lease; empty: the namespace this pod runs in."""
    lease_name: str = "twolane-operator"
    """Name of the lease; operators of different namespaces need different ones."""
    identity: str = ""
    """Name of this replica; empty: host name and process id."""
    workers: int = Field(default=4, ge=1, le=64)
    """ModelDeployments that are looked at at the same time."""
    resync_s: float = Field(default=300.0, gt=0)
    """How often a ModelDeployment is looked at though nothing happened, in seconds."""
    host: str = "127.0.0.1"
    """Address of probes and metrics; 0.0.0.0 in a container."""
    http_port: int = Field(default=9400, ge=0, le=65535)
    """Port of probes and metrics; 0 takes a free one."""
    port_file: Path | None = None
    """File to write the bound port to, as JSON."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level logged."""

    @property
    def default_redis(self) -> Redis | None:
        """Where brokers that name no Redis find one."""
        if not self.redis_secret:
            return None
        return Redis(secret_name=self.redis_secret, key=self.redis_secret_key)

    @property
    def namespace_list(self) -> list[str]:
        """The namespaces to work for; empty for the whole cluster."""
        return [name.strip() for name in self.namespaces.split(",") if name.strip()]
