"""From a model folder to a model and a KV pool in memory, in stages, each reported with bytes and seconds.

Everything that can be wrong with folder, settings or memory is found before the first weight is copied.
Called by `Engine.load`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from twolane.core.errors import ConfigError
from twolane.core.model import ModelFingerprint
from twolane.engine.checkpoint_slots import checkpoint_slots
from twolane.engine.config import EngineConfig, LoadProgress
from twolane.engine.generation import GenerationDefaults, read_generation
from twolane.engine.memory import check_fit
from twolane.engine.model import Model
from twolane.engine.parallel import Ranks, Shard
from twolane.engine.random_weights import RandomWeights
from twolane.engine.spec import ModelSpec, read_spec
from twolane.engine.weights import Checkpoint, tokenizer_sha256

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Reports of one stage are this many bytes apart at least.
_REPORT_BYTES = 64 << 20

Progress = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that an engine is made of."""

    spec: ModelSpec
    fingerprint: ModelFingerprint
    generation: GenerationDefaults
    model: Model
    kv: torch.Tensor
    graph_bytes: int


def load(config: EngineConfig, progress: Progress) -> Loaded:
    """Reads, checks, maps and copies. Raises ConfigError as `Engine.load` says."""
    model_dir = Path(config.model_dir)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with stage("read config", progress):
        spec = read_spec(model_dir)
        generation = read_generation(model_dir, spec)
        tokenizer = "" if config.random_weights else tokenizer_sha256(model_dir)
        device = _device(config.device)
        dtype = _dtype(config.dtype, spec, device)
        max_model_len = _max_model_len(config, spec)
        _check_kernels(spec, device)
        shard = _shard(config, spec)
        graph_bytes = _graph_bytes(config, device)
        n_pages = _n_pages(config, spec, dtype, max_model_len, graph_bytes)
        pool_bytes = n_pages * _page_bytes(config, spec, dtype) + graph_bytes
        check_fit(spec, dtype, device, pool_bytes, shard)
    ranks = None
    if config.parallel is not None:
        # Before the weights: a rank that is missing shows after seconds.
        with stage("join ranks", progress):
            ranks = Ranks(config.parallel, device)
    with stage("map weights", progress):
        checkpoint = RandomWeights() if config.random_weights else Checkpoint(model_dir)
        model = Model(spec, dtype, device, max_model_len, shard)
        slots = checkpoint_slots(model)
        checkpoint.check(slots)
    with stage("load weights", progress, checkpoint.total_bytes) as report:
        checkpoint.fill(slots, report)
        del slots
    with stage("pack weights", progress):
        model.pack()
    page_bytes = _page_bytes(config, spec, dtype)
    with stage("build pages", progress, n_pages * page_bytes) as report:
        kv = _pool(config, spec, n_pages, dtype, device)
        report(n_pages * page_bytes)
    hashes = (tokenizer, checkpoint.sha256)
    fingerprint = _fingerprint(config, spec, hashes, dtype, max_model_len)
    if ranks is not None:
        with stage("wait for ranks", progress):
            ranks.meeting.agree("pages", str(n_pages))
            ranks.meeting.agree("model", repr(fingerprint))
        model.ranks = ranks
    return Loaded(spec, fingerprint, generation, model, kv, graph_bytes)


def _fingerprint(
    config: EngineConfig, spec: ModelSpec, hashes: tuple[str, str], dtype: torch.dtype, max_model_len: int
) -> ModelFingerprint:
    """What workers compare; `hashes` are those of tokenizer and weights."""
    return ModelFingerprint(
        model=config.served_name or Path(config.model_dir).resolve().name,
        architecture=spec.architecture,
        vocab_size=spec.vocab_size,
        tokenizer_sha256=hashes[0],
        weights_sha256=hashes[1],
        n_layers=spec.n_layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        page_tokens=config.page_tokens,
        kv_dtype=str(dtype).removeprefix("torch."),
        max_model_len=max_model_len,
    )


@contextmanager
def stage(name: str, progress: Progress, total_bytes: int = 0) -> Iterator[Callable[[int], None]]:
    """Times one stage; yields the function that reports its bytes."""
    began = time.perf_counter()
    reported = 0

    def report(done_bytes: int) -> None:
        nonlocal reported
        if done_bytes - reported >= _REPORT_BYTES:
            reported = done_bytes
            progress(LoadProgress(name, done_bytes, total_bytes, time.perf_counter() - began, False))

    yield report
    progress(LoadProgress(name, total_bytes, total_bytes, time.perf_counter() - began, True))


def _device(name: str) -> torch.device:
    if name == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not served; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} was asked for but torch sees no CUDA device; use cpu or check the driver"
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _dtype(name: str, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """auto is float32 on CPU, where the others are slower, and the checkpoint's own elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else spec.dtype
    if name not in DTYPES:
        raise ConfigError(
            f"the checkpoint's dtype {name!r} is not served; set dtype to one of {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def _max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    wanted = config.max_model_len or spec.max_position
    if wanted > spec.max_position:
        raise ConfigError(
            f"max_model_len {wanted} exceeds the model's {spec.max_position} positions; "
            "lower it, or give config.json a rope scaling made for longer contexts"
        )
    return wanted


def _check_kernels(spec: ModelSpec, device: torch.device) -> None:
    """Raises ConfigError for a head size that the attention kernels don't have."""
    if device.type == "cuda" and (spec.head_dim % 8 != 0 or spec.head_dim > 256):
        raise ConfigError(
            f"head_dim {spec.head_dim} is not served on a GPU: it must be a multiple of 8 up to 256; use cpu"
        )


def _shard(config: EngineConfig, spec: ModelSpec) -> Shard:
    if config.parallel is None:
        return Shard()
    shard = Shard(config.parallel.rank, config.parallel.size)
    shard.check(spec)
    return shard


def _page_bytes(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one page on this rank, which holds its own heads only."""
    return spec.page_bytes(config.page_tokens, dtype.itemsize) // (
        config.parallel.size if config.parallel else 1
    )


def _graph_bytes(config: EngineConfig, device: torch.device) -> int:
    """Memory for captured graphs: none on CPU or over ranks, else as set or a sixteenth of the pool's."""
    if device.type == "cpu" or config.parallel is not None:
        return 0
    asked = config.graphs.memory_bytes
    return (config.kv_memory_bytes or 0) // 16 if asked is None else asked


def _n_pages(
    config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, max_model_len: int, graph_bytes: int
) -> int:
    """Pages of the pool, after graphs took their share of its memory.

    Raises ConfigError when one request of max_model_len would not fit.
    """
    page_bytes = _page_bytes(config, spec, dtype)
    n_pages = config.n_pages or max(0, (config.kv_memory_bytes or 0) - graph_bytes) // page_bytes
    needed = -(-max_model_len // config.page_tokens)
    if n_pages < needed:
        raise ConfigError(
            f"one request of max_model_len {max_model_len} tokens needs {needed} pages of {page_bytes} bytes "
            f"({needed * page_bytes} bytes in {dtype}), the pool has {n_pages} ({n_pages * page_bytes} "
            f"bytes): raise n_pages or kv_memory_bytes or set max_model_len to {n_pages * config.page_tokens}"
        )
    return n_pages


def _pool(
    config: EngineConfig, spec: ModelSpec, n_pages: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The KV tensor, zeroed: masked keys are multiplied by zero, and zero times garbage may be NaN."""
    n_kv_heads = spec.n_kv_heads // (config.parallel.size if config.parallel else 1)
    shape = (n_pages, spec.n_layers, 2, n_kv_heads, config.page_tokens, spec.head_dim)
    if config.kv_buffer is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    if device.type != "cpu":
        raise ConfigError("kv_buffer serves CPU pools only; leave it out on a GPU")
    n_bytes = n_pages * _page_bytes(config, spec, dtype)
    buffer = config.kv_buffer(n_bytes)
    if buffer.nbytes < n_bytes:
        raise ConfigError(
            f"the pool's buffer has {buffer.nbytes} bytes, {n_bytes} are needed; make it larger"
        )
    count = n_bytes // dtype.itemsize
    return torch.frombuffer(buffer, dtype=dtype, count=count).zero_().view(shape)
