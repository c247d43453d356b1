"""What an engine loads and how much memory it may take; filled in by worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twolane.core.errors import ConfigError
from twolane.engine.parallel_settings import TensorParallel

DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far one stage of loading is; each stage reports at least once, the last time with finished true.

    Attributes:
        stage: "read config", "join ranks", "map weights", "load weights", "pack weights", "build pages",
            "wait for ranks", "compile" or "warm up".
        done_bytes: bytes the stage has handled.
        total_bytes: bytes the stage will handle; 0 when it is not about bytes.
        elapsed_s: seconds since the stage began.
        finished: whether this is the stage's last report.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    elapsed_s: float
    finished: bool


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """Captured graphs of an engine on a GPU; CPU engines have none.

    Attributes:
        memory_bytes: memory for graphs, taken from kv_memory_bytes; None takes a sixteenth of it, 0 is off.
            With n_pages the pool keeps its pages and graphs come on top; None is then off.
        max_rows: largest batch with a graph.
        max_short_tokens: largest prefill step with a graph.
    """

    memory_bytes: int | None = None
    max_rows: int = 64
    max_short_tokens: int = 512


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What to load.

    Attributes:
        model_dir: a Hugging Face model folder.
        served_name: name clients ask for; "" takes the folder's name.
        dtype: of weights and pages; auto is float32 on CPU, else the checkpoint's.
        device: auto takes CUDA when there is one; else cpu, cuda or cuda:N.
        page_tokens: tokens of a page.
        n_pages: pages of the pool; give this or kv_memory_bytes.
        kv_memory_bytes: memory of the pool, rounded down to whole pages.
        max_model_len: prompt plus answer at most; None takes the model's own limit.
        num_threads: torch threads; None leaves torch as it is.
        kv_buffer: gives the memory of a CPU pool (for a shared-memory segment); None allocates privately.
        parallel: this rank's place among tensor-parallel ranks, or None; page sizes are then those of a rank.
        graphs: captured graphs on a GPU.
        compiled: whether a CPU engine in float32 compiles what lies between matrix products; False, or a
            machine where numba can't, leaves it to torch.
        decode_copy_bytes: memory a CPU engine that isn't compiled may take beside the pool to keep running
            decode rows dense; 0 is off.
        random_weights: draw parameters on the device instead of reading them, for measurements of a shape;
            the folder then needs config.json only, and answers mean nothing.
    """

    model_dir: Path
    served_name: str = ""
    dtype: str = "auto"
    device: str = "auto"
    page_tokens: int = 16
    n_pages: int | None = None
    kv_memory_bytes: int | None = None
    max_model_len: int | None = None
    num_threads: int | None = None
    kv_buffer: Callable[[int], memoryview] | None = None
    compiled: bool = True
    decode_copy_bytes: int = 256 << 20
    graphs: GraphSettings = GraphSettings()
    parallel: TensorParallel | None = None
    random_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if (self.n_pages is None) == (self.kv_memory_bytes is None):
            raise ConfigError("give exactly one of n_pages and kv_memory_bytes")
        for name in ("page_tokens", "n_pages", "kv_memory_bytes", "max_model_len", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
