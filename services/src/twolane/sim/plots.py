"""Figures of simulations and comparisons as SVG text, for a page that needs no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from twolane.sim.outcome import CLASSES, SimOutcome

# Points of a drawn distribution: enough for a page, few enough for a small file.
CDF_POINTS = 200
COLOURS = {"short": "#1b7f79", "long": "#c2571a"}


def latency_cdf(outcome: SimOutcome, column: str, title: str) -> str:
    """Distribution of ttft_s, tpot_s or worst_gap_s per class, as SVG."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    values = getattr(outcome.columns, column)
    for position, name in enumerate(CLASSES):
        chosen = values[(outcome.columns.class_index == position) & ~np.isnan(values)]
        if chosen.size:
            shares = np.linspace(0.0, 1.0, min(CDF_POINTS, chosen.size))
            axes.plot(np.maximum(np.quantile(chosen, shares), 1e-4), shares, label=name, color=COLOURS[name])
            axes.legend(loc="lower right")
            axes.set_xscale("log")
    axes.set(title=title, xlabel="seconds", ylabel="share of requests", ylim=(0, 1))
    axes.grid(alpha=0.3)
    return svg(figure)


def over_time(
    times_s: Sequence[float], lines: Mapping[str, Sequence[float]], title: str, marks_s: Sequence[float] = ()
) -> str:
    """Lines over virtual time, as SVG, with a mark at each failure; long series are thinned."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    step = max(1, len(times_s) // 500)
    for name, values in lines.items():
        axes.plot(times_s[::step], values[::step], label=name, color=COLOURS.get(name), linewidth=1.0)
    for at_s in marks_s:
        axes.axvline(at_s, color="#b00020", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="seconds")
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(loc="upper left", fontsize="small")
    axes.grid(alpha=0.3)
    return svg(figure)


def by_load(rows: Sequence[Mapping[str, Any]], workload: str, metrics: Mapping[str, str]) -> str:
    """One panel per metric: a line per policy over the load, with intervals, as SVG."""
    figure = Figure(figsize=(4.2 * len(metrics), 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(metrics)))
    chosen = [row for row in rows if row["workload"] == workload]
    policies = list(dict.fromkeys(row["policy"] for row in chosen))
    for panel, (metric, label) in zip(panels, metrics.items(), strict=True):
        for policy in policies:
            points = sorted(
                (row for row in chosen if row["policy"] == policy and row[metric][0] is not None),
                key=lambda row: float(row["load"]),
            )
            loads = [row["load"] for row in points]
            means = [max(row[metric][0], 1e-4) for row in points]
            width = 2.2 if policy == "laps" else 1.1
            (line,) = panel.plot(loads, means, marker="o", markersize=3, label=policy, linewidth=width)
            low, high = ([max(row[metric][side], 1e-4) for row in points] for side in (1, 2))
            panel.fill_between(loads, low, high, alpha=0.15, color=line.get_color())
        panel.set(title=label, xlabel="load (share of fcfs capacity)")
        if any(row[metric][0] is not None for row in chosen):
            panel.set_yscale("log")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="x-small")
    figure.suptitle(workload)
    return svg(figure)


def svg(figure: Figure) -> str:
    """The figure's SVG element, repeatable, without prolog and metadata; text stays text."""
    with mpl.rc_context({"svg.hashsalt": "twolane", "svg.fonttype": "none"}):
        target = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(target, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", target.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
