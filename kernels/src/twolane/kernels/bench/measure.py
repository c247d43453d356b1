"""Times work on a CUDA device and finds the device's own limits.

Used by the runner. Every timing is a replay of a captured graph after the L2 cache was filled with other
data, so that neither Python nor a warm cache is part of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

_FLUSH_BYTES = 512 * 1024 * 1024
_COPY_BYTES = 1024 * 1024 * 1024
_MATMUL_SIZE = 8192
_LEAST_REPEATS, _MOST_REPEATS = 5, 50
_ROUND_BUDGET_MS = 60.0


@dataclass(frozen=True)
class Ceilings:
    """What the device reached in this very run: bytes read plus written per second, bf16 FLOPs per second."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


class Timer(Protocol):
    """What times the contenders of a case."""

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """Prepare work for repeated timing; runs it once."""

    def round_s(self, replay: Callable[[], object]) -> float:
        """Median seconds of one round of repeats."""


class EventTimer:
    """Replays captured work between events."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """Run once eagerly (compiles, allocates), then record a graph; work that can't be captured stays
        eager."""
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            torch.cuda.synchronize()
            return run
        return graph.replay

    def round_s(self, replay: Callable[[], object]) -> float:
        """Median seconds of one round of repeats."""
        once = self._once_ms(replay)
        repeats = int(min(_MOST_REPEATS, max(_LEAST_REPEATS, _ROUND_BUDGET_MS / max(once, 1e-3))))
        return statistics.median(self._once_ms(replay) for _ in range(repeats)) / 1e3

    def _once_ms(self, replay: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # Read, not written: lines that must go back to memory would slow the work that is timed.
        self._flush.amax()
        start.record()
        replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def measure_ceilings(timer: Timer, device: torch.device) -> Ceilings:
    """Best of three rounds of a large copy and of a large bf16 matrix product."""
    source = torch.empty(_COPY_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = timer.capture(lambda: target.copy_(source))
    copy_s = min(timer.round_s(copy) for _ in range(3))
    a, b = (torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = torch.empty_like(a)
    matmul = timer.capture(lambda: torch.mm(a, b, out=product))
    matmul_s = min(timer.round_s(matmul) for _ in range(3))
    return Ceilings(2 * _COPY_BYTES / copy_s, 2 * _MATMUL_SIZE**3 / matmul_s)
