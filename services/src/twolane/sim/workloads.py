"""The workloads of a comparison: generated mixes and traces, each drawn per seed at a wanted rate.

`compare` asks for a workload at a share of the capacity that first come first served has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twolane.core.errors import InvalidRequest
from twolane.sim.cluster import Simulation
from twolane.sim.settings import SimSettings
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest, read_sessions, read_trace, scaled_to_rate, spread_ties

Draw = Callable[[np.random.Generator, float, int], list[TraceRequest]]


@dataclass(frozen=True, slots=True)
class Workload:
    """A named source of requests.

    Attributes:
        name: as in reports.
        draw: gives `count` requests at a mean rate from a seeded generator.
        mixed: whether short prompts queue with long ones, so that length-awareness can help.
    """

    name: str
    draw: Draw
    mixed: bool = True


_MIX = MixSettings(rate_per_s=1.0, duration_s=1.0)
_MIXES: dict[str, tuple[MixSettings, bool]] = {
    "mix50": (replace(_MIX, short_share=0.5), True),
    "mix63": (replace(_MIX, short_share=0.63), True),
    "mix80": (replace(_MIX, short_share=0.8), True),
    "mix95": (replace(_MIX, short_share=0.95), True),
    "mix80_bursty": (replace(_MIX, short_share=0.8, arrival_cv=3.0), True),
    "mix80_uniform": (replace(_MIX, short_share=0.8, short_shape="uniform"), True),
    "short_only": (replace(_MIX, short_share=1.0), False),
    "long_only": (replace(_MIX, short_share=0.0), False),
    "same_length": (replace(_MIX, short_share=0.0, long_low_tokens=2000, long_high_tokens=2000), False),
}


def mix_workloads() -> list[Workload]:
    """The generated mixes; the last three are ones where length-awareness can't help."""
    return [Workload(name, _mix_draw(settings), mixed) for name, (settings, mixed) in _MIXES.items()]


def trace_workload(path: Path, max_input_tokens: int = 131_072) -> Workload:
    """A trace file: each seed takes another stretch of it, squeezed or stretched to the wanted rate.

    Traces of sessions start their sessions at random; traces with a coarse clock have ties spread. Prompts
    above the limit are left out.

    Raises:
        InvalidRequest: the file holds no usable trace.
    """
    name = path.name.split(".")[0]
    rng = np.random.default_rng(0)
    try:
        requests = read_trace(path)
    except InvalidRequest as error:
        if "sessions" not in error.message:
            raise
        requests = read_sessions(path, sessions_per_s=0.02, rng=rng, max_input_tokens=max_input_tokens)
    usable = [request for request in requests if request.input_tokens <= max_input_tokens]
    if len(usable) < 100:
        raise InvalidRequest(f"{path.name} has {len(usable)} usable requests; a comparison needs 100")
    return Workload(name, _stretch_draw(spread_ties(usable, rng)))


def fcfs_capacity(workload: Workload, settings: SimSettings, count: int) -> float:
    """Requests per second that one prefill worker completes under fcfs when all of them wait at once."""
    drawn = workload.draw(np.random.default_rng(12345), 1.0, count)
    flood = [replace(request, arrival_s=0.0, output_tokens=1) for request in drawn]
    alone = replace(
        settings, prefill_policy="fcfs", prefill_workers=1, decode_workers=1, roles=False, lane_groups=False
    )
    return len(flood) / Simulation(alone, flood).run().makespan_s


def decode_workers_for(requests: Sequence[TraceRequest], settings: SimSettings, use: float) -> int:
    """Decode workers that the answers keep busy to the share `use`, so that prefill decides the result."""
    groups = Simulation(replace(settings, roles=False), requests)
    span_s = max(1e-9, requests[-1].arrival_s)
    work_s = sum(groups.groups.answer_s(request) for request in groups.requests)
    return max(1, int(np.ceil(work_s / span_s / use)))


def _mix_draw(settings: MixSettings) -> Draw:
    def draw(rng: np.random.Generator, rate_per_s: float, count: int) -> list[TraceRequest]:
        return generate_mix(replace(settings, rate_per_s=rate_per_s, duration_s=count / rate_per_s), rng)

    return draw


def _stretch_draw(requests: Sequence[TraceRequest]) -> Draw:
    def draw(rng: np.random.Generator, rate_per_s: float, count: int) -> list[TraceRequest]:
        start = int(rng.integers(0, max(1, len(requests) - count)))
        part = requests[start : start + count]
        zero_s = part[0].arrival_s
        return scaled_to_rate([replace(one, arrival_s=one.arrival_s - zero_s) for one in part], rate_per_s)

    return draw
