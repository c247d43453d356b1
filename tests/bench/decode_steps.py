"""Time of a decode step by batch and context, beside the time to stream weights and KV once.

Used by `prefill_gpu.py`. Contexts are random pages, not computed ones: a step costs the same.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from closed_loop import random_tokens

from twolane.core.request import SamplingParams
from twolane.engine.engine import Engine
from twolane.engine.sequence import Row, Sequence

BATCHES = (1, 4, 16, 64, 128)
CONTEXTS = (512, 4096)
_STEPS = 64
_WARM_STEPS = 3


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One batch at one context; tpot_ms is None where `note` says why nothing was measured."""

    batch: int
    context: int
    tpot_ms: float | None = None
    tpot_p90_ms: float | None = None
    floor_ms: float | None = None
    tok_per_s: float | None = None
    note: str = ""


def decode_rows(
    engine: Engine, weight_bytes: int, bytes_per_s: float | None, deadline_s: float
) -> Iterator[DecodeRow]:
    """Every batch and context that fits pool and deadline (of time.perf_counter)."""
    for block in torch.split(engine.kv, 256):
        block.normal_()
    for context in CONTEXTS:
        for batch in BATCHES:
            needed = batch * -(-(context + _STEPS + 1) // engine.pool.page_tokens)
            if context + _STEPS + 1 > engine.fingerprint.max_model_len or needed > engine.pool.free:
                yield DecodeRow(batch, context, note="does not fit the pool")
            elif time.perf_counter() > deadline_s:
                yield DecodeRow(batch, context, note="no time left")
            else:
                seconds = _step_seconds(engine, batch, context, deadline_s)
                floor_s = None
                if bytes_per_s is not None:
                    floor_s = (weight_bytes + batch * context * token_bytes(engine)) / bytes_per_s
                yield _row(batch, context, seconds, floor_s)


def token_bytes(engine: Engine) -> int:
    """Bytes of one token's keys and values."""
    return engine.spec.page_bytes(1, engine.kv.element_size())


def _row(batch: int, context: int, seconds: list[float], floor_s: float | None) -> DecodeRow:
    median = statistics.median(seconds)
    return DecodeRow(
        batch,
        context,
        tpot_ms=1e3 * median,
        tpot_p90_ms=1e3 * sorted(seconds)[len(seconds) * 9 // 10],
        floor_ms=None if floor_s is None else 1e3 * floor_s,
        tok_per_s=batch / median,
    )


def _step_seconds(engine: Engine, batch: int, context: int, deadline_s: float) -> list[float]:
    """Seconds of up to 64 steps, at least three."""
    rng = random.Random(batch)
    sampling = SamplingParams(max_tokens=_STEPS + 1, temperature=0.0, ignore_eos=True)
    sequences = []
    for number in range(batch):
        tokens = random_tokens(rng, context + 1, engine.spec.vocab_size)
        pages = engine.pool.allocate(-(-(context + _STEPS + 1) // engine.pool.page_tokens))
        sequences.append(Sequence(str(number), tokens, context, sampling, context, pages))
    rows = [Row(sequence, 1, sample=True) for sequence in sequences]
    seconds: list[float] = []
    for _ in range(_STEPS):
        if len(seconds) >= 2 * _WARM_STEPS and time.perf_counter() > deadline_s:
            break
        began_s = time.perf_counter()
        for sequence, drawn in zip(sequences, engine.step(rows), strict=True):
            assert drawn is not None
            sequence.tokens.append(drawn.token_id)
        seconds.append(time.perf_counter() - began_s)
    for sequence in sequences:
        engine.pool.release(sequence.page_ids)
    return seconds[_WARM_STEPS:]


def copy_bytes_per_s(device: torch.device) -> float | None:
    """Bytes read and written per second by a large copy on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    from twolane.kernels.bench.measure import EventTimer, measure_ceilings

    ceilings = measure_ceilings(EventTimer(device), device)
    # What it allocated goes back before steps need it.
    torch.cuda.empty_cache()
    return ceilings.copy_bytes_per_s
