"""Draws a run: when each first token came, and how the latencies are distributed, per length class.

Written beside the JSON report. Colours are told apart by colour-blind readers as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from twolane.bench.client import Sample
from twolane.bench.report import RunResult
from twolane.workload.latency import Outcome

COLOURS = {"short": "#0072b2", "long": "#d55e00"}
OTHER_COLOUR = "#009e73"


def write_plot(result: RunResult, path: Path) -> None:
    """Writes the figure; the ending of the name (.png, .svg) chooses the form."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    over_time, first, further = figure.subplots(1, 3)
    classes = sorted({sample.length_class for sample in result.samples})
    for name in classes:
        samples = [s for s in result.samples if s.length_class == name]
        _draw_class(name, samples, (over_time, first, further))
    failed = [s.due_s for s in result.samples if s.outcome is not Outcome.DONE]
    if failed:
        # They have no latency: they stand along the upper edge.
        over_time.plot(failed, [0.98] * len(failed), "kx", transform=over_time.get_xaxis_transform())
    _label(over_time, "time to first token (× failed)", "seconds after the start", "seconds")
    _label(first, "time to first token", "seconds", "share of requests")
    _label(further, "time per further token", "seconds", "share of requests")
    if _latencies(result.samples, "ttft"):
        over_time.set_yscale("log")
    figure.savefig(path, dpi=120)


def _draw_class(name: str, samples: Sequence[Sample], axes: tuple[Any, Any, Any]) -> None:
    colour = COLOURS.get(name, OTHER_COLOUR)
    over_time, first, further = axes
    came = [s for s in samples if s.first_s is not None]
    ttft = _latencies(came, "ttft")
    over_time.plot([s.due_s for s in came], ttft, ".", color=colour, label=name)
    for axis, values in ((first, ttft), (further, _latencies(came, "tpot"))):
        if values:
            axis.ecdf(values, color=colour, label=f"{name} (n={len(values)})")


def _latencies(samples: Sequence[Sample], kind: str) -> list[float]:
    if kind == "ttft":
        return [s.first_s - s.due_s for s in samples if s.first_s is not None]
    spans = [(s.first_s, s.last_s, s.output_tokens) for s in samples if s.output_tokens > 1]
    return [
        (last - first) / (count - 1) for first, last, count in spans if first is not None and last is not None
    ]


def _label(axis: Any, title: str, across: str, up: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        axis.legend(handles, labels)
    if axis.get_xlim()[0] < 0:
        axis.set_xlim(left=0)
