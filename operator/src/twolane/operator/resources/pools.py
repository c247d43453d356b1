"""The workers of a ModelDeployment: pools, their engine options, devices and pod overrides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from twolane.operator.resources.shape import Shape
from twolane.operator.resources.sources import Name

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
WorkerCount = Annotated[int, Field(ge=0, le=10000)]


class Engine(Shape):
    """Options of the engine; each is a flag of `twolane worker`, None keeps the worker's default."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] | None = None
    num_threads: Positive | None = None
    page_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    kv_memory_mib: Annotated[Positive | None, Field(alias="kvMemoryMiB")] = None
    max_model_len: Positive | None = None
    scheduler: Name | None = None
    short_max_uncached_tokens: Positive | None = None
    window_ms: Annotated[float, Field(ge=0)] | None = None
    max_batch_tokens: Positive | None = None
    long_chunk_tokens: Positive | None = None
    max_decode_rows: Positive | None = None
    decode_policy: Name | None = None
    nixl: bool | None = None
    layer_push_mib: Annotated[Annotated[float, Field(ge=0)] | None, Field(alias="layerPushMiB")] = None
    max_pinned_share: Annotated[float, Field(ge=0.01, le=1)] | None = None
    parity_share: Annotated[float, Field(ge=0, le=1)] | None = None
    max_waiting: Positive | None = None


class TemplateMetadata(Shape):
    """Labels and annotations to add to pods."""

    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})


class PodTemplate(Shape):
    """What is merged into the pods last; `spec` is a part of a pod's spec."""

    metadata: TemplateMetadata = TemplateMetadata()
    spec: dict[str, Any] = Field(default={})


class Resources(Shape):
    """Quantities by resource name."""

    requests: dict[str, str | int] = Field(default={})
    limits: dict[str, str | int] = Field(default={})


class Gpu(Shape):
    """Devices of each worker."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    resource: Name = "nvidia.com/gpu"
    type: str = ""
    type_label: Name = "nvidia.com/gpu.product"
    numa_aligned: bool = False


class TensorParallel(Shape):
    """A model that one device can't hold, or not fast enough: each worker is several ranks."""

    size: Annotated[int, Field(ge=2, le=64)]
    pods_per_worker: Annotated[int, Field(ge=1, le=64)] = 1
    timeout_seconds: Positive | None = None


class PoolScaling(Shape):
    """Bounds that hold whoever scales."""

    min_replicas: Count = 1
    max_replicas: Positive | None = None


class Pool(Shape):
    """A pool of like workers."""

    replicas: WorkerCount | None = None
    scaling: PoolScaling = PoolScaling()
    gpu: Gpu | None = None
    tensor_parallel: TensorParallel | None = None
    resources: Resources | None = None
    engine: Engine | None = None
    pod_template: PodTemplate | None = None


class Prefill(Shape):
    """Workers that compute prompts: shared by both lanes, or a pool for each."""

    shared: Pool | None = None
    short: Pool | None = None
    long: Pool | None = None


class Pools(Shape):
    """Prefill and decode, or mixed alone."""

    prefill: Prefill | None = None
    decode: Pool | None = None
    mixed: Pool | None = None
