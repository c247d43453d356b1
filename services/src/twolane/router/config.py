"""Settings of one router process.

`main` builds it from flags and TWOLANE_ROUTER_… variables; tests and `twolane up` build it directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from twolane.core.config import ProcessConfig
from twolane.core.request import Lane
from twolane.router.targets import SloTargets

LaneTarget = Annotated[int, Field(ge=0)]


class RouterConfig(ProcessConfig):
    """Everything a router can be told at its start."""

    process: ClassVar[str] = "router"

    model_dir: Path
    """Hugging Face folder of the model; the router reads config.json, the tokenizer and the chat template."""
    served_model_name: str = ""
    """Name under which clients ask for the model; empty: the folder's name."""
    broker: str = "127.0.0.1:9200"
    """host:port of the broker."""
    host: str = "127.0.0.1"
    """Address to listen on, for HTTP and gRPC; 0.0.0.0 inside a container."""
    port: int = Field(default=8000, ge=0, le=65535)
    """HTTP port: OpenAI REST, probes, metrics; 0 takes any free one."""
    grpc_port: int = Field(default=9000, ge=0, le=65535)
    """gRPC port: twolane.v1.Inference; 0 takes any free one."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt: broker and workers are reached by mutual TLS, and new files
    count from the next connection on; unset: plain text."""
    http_tls_dir: Path | None = None
    """Folder with tls.crt and tls.key for clients: HTTPS, and TLS for gRPC; new files count from the next
    connection on; unset: plain text."""
    router_id: str = ""
    """Name of this process in the logs of workers and broker; empty: host name and process id."""
    port_file: Path | None = None
    """File to write the bound ports to, once the router listens."""

    api_keys_file: Path | None = None
    """File with one API key per line, read again when it changes; with one every call must carry a key."""
    api_keys: SecretStr = SecretStr("")
    """API keys, separated by commas: better given by the environment than by a flag."""

    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest HTTP body; a longer one is refused with 413."""
    max_waiting: int = Field(default=512, ge=1)
    """Answers that may wait for their first token; more are refused with 429."""
    hold_s: float = Field(default=0.0, ge=0)
    """How long a request waits while no worker of a role it needs runs; 0: it is refused with 503 at once."""
    max_held: int = Field(default=256, ge=1)
    """Requests that may wait so; more are refused with 429."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time a request may take, its waiting included."""
    write_timeout_s: float = Field(default=30.0, gt=0)
    """A client that takes nothing from its connection for so long is cut off."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long running requests may go on after SIGTERM."""
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    """Threads that tokenize long prompts beside the event loop."""

    placement: Literal["least_wait", "least_uncached", "least_loaded", "power_of_two", "round_robin"] = (
        "least_wait"
    )
    """Policy that picks the workers of a request."""
    tpot_slo_ms: float = Field(default=50.0, gt=0)
    """Milliseconds per token that running answers may take; a prompt is never put beside them beyond it."""
    short_max_uncached_tokens: int = Field(default=256, ge=1)
    """A prompt with at most so many uncached tokens travels in the short lane."""
    ttft_slo_ms: int = Field(default=0, ge=0)
    """Target for the first token that workers schedule by; 0: none. A header can set it per request."""
    short_ttft_slo_ms: LaneTarget = 0
    """The same for the short lane alone; 0: as for all."""
    long_ttft_slo_ms: LaneTarget = 0
    """The same for the long lane alone; 0: as for all."""
    short_tpot_slo_ms: LaneTarget = 0
    """Milliseconds per token of answers to short prompts; 0: as for all."""
    long_tpot_slo_ms: LaneTarget = 0
    """Milliseconds per token of answers to long prompts; 0: as for all."""
    max_model_len: int = Field(default=0, ge=0)
    """Prompt plus answer at most while no worker is known; 0: the model's own limit."""

    otlp_endpoint: str = ""
    """OTLP/gRPC collector for traces, for example http://localhost:4317; empty: no traces."""
    otlp_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced; a caller's own decision wins."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""

    @property
    def model_name(self) -> str:
        """The name clients ask for."""
        return self.served_model_name or self.model_dir.resolve().name

    @property
    def slo_targets(self) -> SloTargets:
        """The latency targets of both lanes."""
        ttft = {Lane.SHORT: self.short_ttft_slo_ms, Lane.LONG: self.long_ttft_slo_ms}
        tpot = {Lane.SHORT: self.short_tpot_slo_ms, Lane.LONG: self.long_tpot_slo_ms}
        return SloTargets(
            ttft_ms={lane: own or self.ttft_slo_ms for lane, own in ttft.items()},
            tpot_ms={lane: own or self.tpot_slo_ms for lane, own in tpot.items()},
        )
