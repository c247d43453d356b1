"""What a simulation or a comparison leaves behind: JSON for programs, one HTML page for people."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

import orjson

from twolane.sim import plots
from twolane.sim.outcome import SimOutcome
from twolane.sim.settings import SimSettings

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    ".figures{display:flex;flex-wrap:wrap;gap:1em}.figures svg{max-width:100%;height:auto}"
)


def simulation_json(outcome: SimOutcome, settings: SimSettings) -> bytes:
    """Settings, summary and counters, indented; numbers that were not measured are null."""
    document = {
        "settings": asdict(settings),
        "duration_s": outcome.duration_s,
        "makespan_s": outcome.makespan_s,
        "summary": {name: asdict(summary) for name, summary in outcome.summary.items()},
        "counters": dict(outcome.counters),
    }
    return orjson.dumps(_plain(document), option=orjson.OPT_INDENT_2)


def simulation_html(outcome: SimOutcome, settings: SimSettings, title: str) -> str:
    """A page with the summary, latency distributions, queues and roles; it loads nothing."""
    line = outcome.timeline
    failed_s = [failure.at_s for failure in settings.failures]
    roles = {name: counts for name, counts in line.roles.items() if any(counts)}
    figures = [
        plots.latency_cdf(outcome, "ttft_s", "Time to first token"),
        plots.latency_cdf(outcome, "tpot_s", "Time per further token"),
        plots.over_time(line.time_s, line.queued, "Queued prompts", failed_s),
        plots.over_time(line.time_s, {"answers": line.decoding}, "Answers that grow", failed_s),
        plots.over_time(line.time_s, roles, "Workers per role", failed_s),
        plots.over_time(line.time_s, line.kv_use, "KV memory in use, share of a worker's", failed_s),
    ]
    facts = {
        "policy": settings.prefill_policy,
        "decode admission": settings.decode_policy,
        "engine profile": settings.profile,
        "workers": _workers(settings),
        "seed": str(settings.seed),
        "arrivals over": f"{outcome.duration_s:.0f} s",
        **{name.replace("_", " "): f"{value:,.6g}" for name, value in outcome.counters.items()},
    }
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _summary_table(outcome),
        f'<div class="figures">{"".join(figures)}</div>',
        _table(["", ""], [[name, str(value)] for name, value in facts.items()]),
    ]
    return page(title, body)


def _workers(settings: SimSettings) -> str:
    if settings.mixed_workers:
        return f"{settings.mixed_workers:,} mixed"
    return f"{settings.prefill_workers:,} prefill, {settings.decode_workers:,} decode at the start"


def page(title: str, body: Sequence[str]) -> str:
    """An HTML document of its own."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _summary_table(outcome: SimOutcome) -> str:
    header = [
        "class",
        "requests",
        "failed",
        "TTFT p50",
        "p90",
        "p99",
        "TPOT p50",
        "p99",
        "worst gap",
        "in SLO",
        "goodput",
    ]
    rows = []
    for name, found in outcome.summary.items():
        seconds = (found.ttft_p50_s, found.ttft_p90_s, found.ttft_p99_s, found.tpot_p50_s, found.tpot_p99_s)
        rows.append(
            [
                name,
                f"{found.count:,}",
                f"{found.failed:,}",
                *(_ms(value) for value in (*seconds, found.worst_gap_s)),
                "–" if math.isnan(found.slo_attainment) else f"{100 * found.slo_attainment:.2f} %",
                f"{found.goodput_per_s:.2f}/s",
            ]
        )
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1000 * seconds:,.1f} ms"


def _plain(value: Any) -> Any:
    """Values that JSON knows."""
    if isinstance(value, Mapping):
        return {str(key.value if isinstance(key, Enum) else key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, str | int | bool) or value is None else float(value)
