"""The broker's settings; flags and TWOLANE_BROKER_* names are derived from the fields.

main.py reads them; the launcher and the chart set them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from twolane.core.config import ProcessConfig


class BrokerConfig(ProcessConfig):
    """Settings of one broker process."""

    process: ClassVar[str] = "broker"

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 in a container. Without --tls-dir the broker trusts its callers."""

    port: int = Field(default=9200, ge=0, le=65535)
    """Port of twolane.v1.Broker; 0 takes any free one."""

    http_port: int = Field(default=9400, ge=0, le=65535)
    """Port of /healthz, /readyz and /metrics; 0 takes any free one."""

    port_file: str = ""
    """JSON file to write the bound ports to, {"grpc": 9200, "http": 9400}; empty: none."""

    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt: gRPC in both directions goes by mutual TLS, and new files
    count from the next connection on; unset: plain text."""

    redis_url: str = Field(default="", repr=False)
    """Redis that keeps the books, redis://[:password@]host:6379/0; empty: this process's memory."""

    redis_namespace: str = ""
    """Prefix of all keys, so that brokers of different deployments can share one Redis; empty: twolane's."""

    redis_timeout_s: float = Field(default=3.0, gt=0)
    """Longest time for one operation in Redis, retries included."""

    lease_ttl_s: float = Field(default=30.0, gt=0)
    """How long a lease lasts unless it is renewed."""

    worker_ttl_s: float = Field(default=5.0, gt=0)
    """A worker without a heartbeat for so long is gone."""

    heartbeat_interval_s: float = Field(default=1.0, gt=0)
    """How often workers must send a heartbeat, and how often the broker looks for silent ones."""

    settle_s: float = Field(default=2.0, ge=0)
    """Without Redis: watchers get their first snapshot so long after the start, because until then the
    workers of before a restart are still coming back; 0: at once."""

    role_control: bool = False
    """Move workers between the pools, and between lanes that have workers of their own, as load asks."""

    role_interval_s: float = Field(default=2.0, gt=0)
    """How often the sizes of the pools are reconsidered."""

    watch_queue: int = Field(default=256, ge=1)
    """Events that wait for one slow watcher; beyond, it gets a fresh snapshot instead."""

    stop_grace_s: float = Field(default=5.0, ge=0)
    """How long running calls may take to end after SIGTERM."""

    otlp_endpoint: str = ""
    """OpenTelemetry collector for traces, http://host:4317; empty: no traces."""

    otlp_sample_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of traces that begin here and are recorded."""

    log_level: str = "INFO"
    """Least level logged: DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    @model_validator(mode="after")
    def _beats_fit_into_a_life(self) -> Self:
        if self.heartbeat_interval_s >= self.worker_ttl_s:
            raise ValueError("heartbeat_interval_s must be below worker_ttl_s")
        return self
