"""Settings of a worker process; flags and TWOLANE_WORKER_* names follow from the fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from twolane.core.config import ProcessConfig

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]


class WorkerConfig(ProcessConfig):
    """One worker."""

    process: ClassVar[str] = "worker"

    model_dir: Path
    """A Hugging Face model folder."""
    served_model_name: str = ""
    """Name clients ask for; empty takes the folder's name."""
    role: Literal["prefill", "decode", "mixed"] = "mixed"
    """The pool it starts in."""
    lane: Literal["both", "short", "long"] = "both"
    """Lane of prompts it serves."""
    worker_id: str = ""
    """Stable name at the broker; empty takes host name and port."""
    broker: str = "127.0.0.1:9200"
    """host:port of the broker; of several replicas, with commas between."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    advertise_host: str = ""
    """Address others reach it at; empty takes `host`."""
    port: Port = 9100
    """gRPC port; 0 takes a free one."""
    http_port: Port = 9400
    """Port of probes and metrics; 0 takes a free one."""
    data_port: Port = 0
    """TCP port on which pages of other hosts come in; 0 takes a free one."""
    nixl: bool = False
    """Lets workers of other hosts read pages by NIXL (RDMA where there is any); needs the extra `nixl`.
    NIXL neither encrypts nor asks who reads, so that it goes with no --tls-dir."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt: gRPC in both directions and pages by TCP go by mutual TLS, and
    new files count from the next connection on; unset: plain text."""
    port_file: Path | None = None
    """File to write the bound ports to, as JSON."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of weights and pages."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_threads: Positive | None = None
    """Threads of tensor operations on a CPU; unset leaves the library's choice."""
    page_tokens: Positive = 16
    """Tokens of a page."""
    kv_memory_mib: Positive = 256
    """Memory of the page pool, in MiB."""
    max_model_len: Positive | None = None
    """Prompt plus answer at most, in tokens; unset takes the model's own limit."""

    tensor_parallel_size: Positive = 1
    """Processes (ranks) that share the model's heads, each on a GPU of its own, each with `kv_memory_mib`."""
    tensor_parallel_rank: Annotated[int, Field(ge=0)] | None = None
    """Which of them this is; unset: this one starts the others on its host. Rank 0 serves, others follow."""
    tensor_parallel_address: str = ""
    """host:port at which rank 0 is found by the others; needed when ranks are started one by one."""
    tensor_parallel_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """How long ranks wait for each other, to meet and within a step, in seconds."""

    scheduler: str = "laps"
    """Prefill policy."""
    decode_policy: str = "past_future"
    """Policy that admits prompts of other workers to this one's pages."""
    short_max_uncached_tokens: Positive = 256
    """Longest uncached prompt of the short lane, in tokens; a policy that fits its own may raise it."""
    window_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long a short batch may wait for company, in milliseconds."""
    max_batch_tokens: Positive = 2048
    """Prompt tokens of one engine step at most."""
    long_chunk_tokens: Positive = 512
    """Tokens of one chunk of a long prompt."""
    layer_push_mib: Annotated[float, Field(ge=0)] = 4.0
    """Layers of a running step go ahead to the decode worker when so many MiB of them are there; 0: never."""
    max_pinned_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """No prompt is computed while computed ones that wait for their transfer hold more than this share of the
    pages: decode workers that can't take more hold prefill back, and its queue the routers."""
    parity_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of answers after a transfer that an idle worker computes again by itself to compare them."""
    max_decode_rows: Positive = 64
    """Answers that grow in one engine step at most."""
    max_waiting: Positive = 1024
    """Requests that may wait here; more are refused as overloaded."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """How long running requests may take to end after a stop was asked for, in seconds."""

    step_log_dir: Path | None = None
    """Folder for the time of every engine step, which `twolane profile --steps` fits; unset: none."""
    otlp_endpoint: str = ""
    """Where spans go (OTLP over gRPC); empty keeps none."""
    otlp_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of traces begun here that are kept."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level logged."""

    @model_validator(mode="after")
    def _ranks_know_their_place(self) -> Self:
        rank, size = self.tensor_parallel_rank, self.tensor_parallel_size
        if rank is not None and rank >= size:
            raise ValueError(f"--tensor-parallel-rank {rank} must be below --tensor-parallel-size {size}")
        if rank is not None and size > 1 and not self.tensor_parallel_address:
            raise ValueError("--tensor-parallel-rank needs --tensor-parallel-address, where rank 0 is found")
        if size > 1 and self.nixl:
            raise ValueError("--nixl serves one rank only: leave it out with --tensor-parallel-size")
        return self

    @model_validator(mode="after")
    def _pages_are_not_sent_in_the_open(self) -> Self:
        if self.nixl and self.tls_dir is not None:
            raise ValueError("--nixl sends pages in the open, which --tls-dir forbids: leave one of them out")
        return self
