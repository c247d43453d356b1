"""The readable side of `gpu_check.py`: one Markdown page from the JSON files of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_CELL = dict[str, Any]


def summary(record: dict[str, Any]) -> str:
    """Stages, then what each benchmark measured as far as it came."""
    lines = [
        f"# {record['device']}, {record['began']}",
        "",
        f"torch {record['torch']}, Triton {record['triton']}, Python {record['python']}; random weights.",
        "",
        *_table(("stage", "status", "s", "tests", "failed", "note"), map(_stage, record["stages"])),
    ]
    for stage in record["stages"]:
        lines += [f"- failed: `{name}`" for name in stage["failed_tests"]]
    for name, found in record["results"].items():
        lines += _kernels(name, found) if "rows" in found else _shape(found)
    return "\n".join(lines) + "\n"


def _stage(stage: _CELL) -> Sequence[object]:
    counts = stage["tests"]
    failed = counts.get("failures", 0) + counts.get("errors", 0) if counts else ""
    seconds = f"{stage['seconds']:.0f}"
    return stage["stage"], stage["status"], seconds, counts.get("tests", ""), failed, stage["note"]


def _kernels(stage: str, found: _CELL) -> list[str]:
    """Each kernel's share of the limit, beside its fastest peer's."""
    limits = found["ceilings"]
    copy, matmul = limits["copy_bytes_per_s"] / 1e9, limits["matmul_flops_per_s"] / 1e12
    rows = []
    peers: dict[tuple[str, str], _CELL] = {}
    for row in found["rows"]:
        key = (row["op"], row["case"])
        if row["contender"] != "twolane" and row["share"] > peers.get(key, {"share": 0.0})["share"]:
            peers[key] = row
    for row in found["rows"]:
        if row["contender"] == "twolane":
            peer = peers.get((row["op"], row["case"]))
            best = f"{peer['contender']} {peer['share']:.0%}" if peer else ""
            share = f"{row['share']:.0%}"
            rows.append((row["op"], row["case"], f"{row['time_us']:.1f}", row["limit"], share, best))
    head = f"Share of the limit; here copies move {copy:.0f} GB/s, bf16 products reach {matmul:.0f} TFLOP/s."
    names = ("operation", "case", "µs", "limit", "share", "best peer")
    failed = [f"- {line}" for line in found.get("failed", [])]
    return ["", f"## {stage}", "", head, "", *_table(names, rows), *([""] if failed else []), *failed]


def _shape(found: _CELL) -> list[str]:
    """Times to first token by policy, then decode steps."""
    policies = list(dict.fromkeys(cell["policy"] for cell in found["prefill"]))
    cells: dict[tuple[bool, int], dict[str, _CELL]] = {}
    for cell in found["prefill"]:
        cells.setdefault((cell["prefix_reuse"], cell["clients"]), {})[cell["policy"]] = cell
    rows = []
    for (reuse, clients), by_policy in cells.items():
        published = next(iter(by_policy.values()))["published_p50_ms"]
        values = [_first_token(by_policy.get(policy)) for policy in policies]
        rows.append(("yes" if reuse else "no", clients, *values, _number(published)))
    decode = [
        (row["context"], row["batch"], *(_number(row[key]) for key in _DECODE), row["note"])
        for row in found["decode"]
    ]
    streaming = _number(found["weight_streaming_ms"])
    return [
        "",
        f"## {found['shape']}, {found['dtype']}",
        "",
        f"Loaded in {found['load_s']:.0f} s, pool of {found['pool_pages']} pages of {found['page_tokens']} "
        f"tokens; streaming the weights once takes {streaming} ms.",
        "",
        "Milliseconds to the first token, p50 / p90 / p99, and thousands of computed prompt tokens a second:",
        "",
        *_table(("prefix reuse", "clients", *policies, "published p50"), rows),
        "",
        "Decode steps, ms; the floor streams weights and KV once:",
        "",
        *_table(("context", "batch", "p50", "p90", "floor", "tok/s", "note"), decode),
    ]


_DECODE = ("tpot_ms", "tpot_p90_ms", "floor_ms", "tok_per_s")


def _first_token(cell: _CELL | None) -> str:
    if cell is None or cell["ttft_p50_ms"] is None:
        return "-"
    times = " / ".join(_number(cell[f"ttft_{name}_ms"]) for name in ("p50", "p90", "p99"))
    return f"{times}; {cell['computed_tok_per_s'] / 1e3:.1f}k"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    body = ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    return ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |", *body]
