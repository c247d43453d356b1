"""Measures time to first token by policy and clients, and decode steps by batch, at real shapes on a GPU.

Run by hand: `python tests/bench/prefill_gpu.py [--shape qwen2.5-7b] [--budget-s 60] [--json FILE]`; the
weights are random. The load is that of the LAPS repository's single-instance table: prompts as long as
LMSYS-Chat's, one output token, a closed loop. Its figures stand beside ours where the shape is the same.
Exits 2 without a CUDA device, 3 when the shape doesn't fit it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from closed_loop import Client, ClosedLoop, Measured
from decode_steps import copy_bytes_per_s, decode_rows
from model_shapes import SHAPES, write_config

from twolane.core.errors import ConfigError
from twolane.engine.config import EngineConfig, GraphSettings
from twolane.engine.engine import Engine
from twolane.engine.memory import available_bytes, weight_bytes
from twolane.engine.parallel import Shard
from twolane.engine.spec import read_spec

POLICIES = ("fcfs", "laps_fixed", "laps")
CLIENTS = (1, 4, 16, 64, 128)
# Median milliseconds to the first token that the LAPS repository gives for one H200: (shape, clients).
PUBLISHED_MS = {("qwen2.5-32b", 1): 46.0, ("qwen2.5-32b", 16): 90.0, ("qwen2.5-32b", 128): 259.0}
# Each cell is measured in so many slices, the policies in turn within each.
_SLICES = 2
_LEAST_SLICE_S = 0.2
# Shares of the time that is left after loading.
_WARM_SHARE, _PREFILL_SHARE = 0.15, 0.65
# Activations, graphs and the kernels' own memory beside weights and pool.
_RESERVE_BYTES = 6 << 30
_MOST_POOL_BYTES = 40 << 30
_CPU_POOL_BYTES = 64 << 20


@dataclass(frozen=True)
class Plan:
    """What to measure on a loaded engine, and by when (of time.perf_counter)."""

    engine: Engine
    clients: tuple[int, ...]
    longest: int
    deadline_s: float
    slice_s: float
    others_only: bool

    def left_s(self) -> float:
        """Seconds left."""
        return max(0.0, self.deadline_s - time.perf_counter())

    def crowd(self, count: int, reuse: bool, slice_number: int) -> list[Client]:
        """The same clients for every policy, with prompts of their own in each slice."""
        vocab, seeds = self.engine.spec.vocab_size, random.Random(slice_number)
        return [Client(random.Random(seeds.random()), vocab, self.longest, reuse) for _ in range(count)]


def load_engine(args: argparse.Namespace) -> Engine:
    """An engine with random weights and as large a pool as fits.

    Raises:
        ConfigError: the weights don't fit the device.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = write_config(args.shape, Path(name))
        spec = read_spec(folder)
        pool_bytes = _CPU_POOL_BYTES
        if args.device != "cpu":
            device = torch.device("cuda")
            free = (available_bytes(device) or 0) - weight_bytes(spec, 2, Shard()) - _RESERVE_BYTES
            pool_bytes = max(1 << 30, min(_MOST_POOL_BYTES, free))
        config = EngineConfig(
            folder,
            served_name=args.shape,
            dtype="auto",
            device=args.device,
            page_tokens=args.page_tokens,
            kv_memory_bytes=pool_bytes,
            max_model_len=args.longest + 128,
            graphs=GraphSettings(max_rows=args.graph_rows),
            random_weights=True,
        )
        return Engine.load(config, _say)


def _say(progress: Any) -> None:
    if progress.finished:
        print(f"{progress.stage}: {progress.elapsed_s:.1f} s", flush=True)


def prefill_cells(plan: Plan, shape: str) -> Iterator[dict[str, Any]]:
    """One row per prefix reuse, number of clients and policy; those without time left say so."""
    loops = {policy: ClosedLoop(plan.engine, policy, others_only=plan.others_only) for policy in POLICIES}
    _warm_up(plan, loops)
    cells = [(reuse, count) for count in plan.clients for reuse in (False, True)]
    slice_s = plan.left_s() * _PREFILL_SHARE / (len(cells) * len(POLICIES) * _SLICES)
    slice_s = min(max(slice_s, _LEAST_SLICE_S), plan.slice_s)
    for reuse, count in cells:
        measured = {policy: Measured() for policy in POLICIES}
        if plan.left_s() > 0:
            for number in range(_SLICES):
                for policy, loop in loops.items():
                    _forget_prefixes(plan.engine)
                    loop.run(plan.crowd(count, reuse, number), slice_s, measured[policy])
        for policy, result in measured.items():
            yield _cell(shape, policy, count, reuse, result)


def _warm_up(plan: Plan, loops: dict[str, ClosedLoop]) -> None:
    """Compiles what steps of every size need, and lets the policies learn what steps cost."""
    seconds = plan.left_s() * _WARM_SHARE / (len(loops) * len(plan.clients))
    for count in plan.clients:
        for loop in loops.values():
            crowd = plan.crowd(count, reuse=True, slice_number=_SLICES)
            loop.run(crowd, min(seconds, plan.slice_s), Measured())


def _forget_prefixes(engine: Engine) -> None:
    """Empties the prefix cache, so that no policy finds what another computed."""
    engine.pool.release(engine.pool.allocate(engine.pool.free))


def _cell(shape: str, policy: str, count: int, reuse: bool, result: Measured) -> dict[str, Any]:
    elapsed_s = result.elapsed_s or None
    return {
        "prefix_reuse": reuse,
        "clients": count,
        "policy": policy,
        "ttft_p50_ms": result.quantile_ms(0.5),
        "ttft_p90_ms": result.quantile_ms(0.9),
        "ttft_p99_ms": result.quantile_ms(0.99),
        "computed_tok_per_s": result.computed_tokens / elapsed_s if elapsed_s else None,
        "requests_per_s": len(result.ttft_s) / elapsed_s if elapsed_s else None,
        "prompts": len(result.ttft_s),
        "steps": result.steps,
        "cached_tokens": result.cached_tokens,
        "computed_tokens": result.computed_tokens,
        "published_p50_ms": None if reuse else PUBLISHED_MS.get((shape, count)),
    }


def _text(row: dict[str, Any]) -> str:
    """A row as one line."""
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if value not in (None, "")
    )


def measure(args: argparse.Namespace) -> None:
    """Loads, measures, prints each row as it comes and writes the JSON file anew with it."""
    began_s = time.perf_counter()
    engine = load_engine(args)
    device = engine.kv.device
    weights = weight_bytes(engine.spec, engine.kv.element_size(), Shard())
    if not engine.spec.tied:
        # A step reads a few rows of the embedding only.
        weights -= engine.spec.vocab_size * engine.spec.hidden_size * engine.kv.element_size()
    speed = copy_bytes_per_s(device)
    record: dict[str, Any] = {
        "shape": args.shape,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "dtype": engine.fingerprint.kv_dtype,
        "page_tokens": engine.pool.page_tokens,
        "pool_pages": engine.pool.n_pages,
        "graph_rows": args.graph_rows if engine.graph_budget_bytes else 0,
        "queue_depth": args.queue_depth,
        "streamed_weight_bytes": weights,
        "copy_bytes_per_s": speed,
        "weight_streaming_ms": None if speed is None else 1e3 * weights / speed,
        "load_s": time.perf_counter() - began_s,
        "prefill": [],
        "decode": [],
    }
    plan = Plan(
        engine,
        tuple(args.clients),
        args.longest,
        deadline_s=began_s + args.budget_s,
        slice_s=args.slice_s,
        others_only=args.queue_depth == "others",
    )
    for name, rows in (
        ("prefill", prefill_cells(plan, args.shape)),
        ("decode", map(asdict, decode_rows(engine, weights, speed, plan.deadline_s))),
    ):
        for row in rows:
            print(f"{name}: {_text(row)}", flush=True)
            record[name].append(row)
            if args.json:
                args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds, loading included")
    parser.add_argument("--slice-s", type=float, default=3.0, help="seconds of one measurement at most")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--longest", type=int, default=4096, help="tokens of a prompt at most")
    parser.add_argument("--page-tokens", type=int, default=16)
    parser.add_argument("--graph-rows", type=int, default=128, help="largest batch with a captured graph")
    parser.add_argument("--queue-depth", choices=("all", "others"), default="all", help="see ClosedLoop")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        parser.exit(2, "prefill_gpu: no CUDA device here; try --shape tiny --device cpu\n")
    try:
        measure(args)
    except ConfigError as error:
        parser.exit(3, f"prefill_gpu: {error}\n")


if __name__ == "__main__":
    main()
