"""What the dashboards show: panels by row, each one question that somebody who runs twolane asks.

`generate.py` turns them into Grafana's JSON; a test compares every metric with what the processes export.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL = 'namespace=~"$namespace", model_deployment=~"$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph.

    Attributes:
        title: the question, short.
        queries: PromQL by legend.
        unit: of Grafana: s, short, reqps, percentunit, Bps.
        about: what to do when it looks bad.
        stacked: whether the lines add up.
        threshold: a line that should not be crossed.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    about: str = ""
    stacked: bool = False
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; rows by title, `variables` by name with the query for their values."""

    name: str
    title: str
    rows: dict[str, list[Panel]]
    variables: dict[str, str] = field(default_factory=dict)


def _rate(metric: str, by: str, matchers: str = "", where: str = MODEL) -> str:
    inside = ", ".join(part for part in (where, matchers) if part)
    return f"sum by ({by}) (rate({metric}{{{inside}}}[$__rate_interval]))"


def _quantile(share: float, metric: str, by: str = "", where: str = MODEL) -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {_rate(metric + '_bucket', groups, '', where)})"


def _sum(metric: str, by: str, matchers: str = "") -> str:
    inside = ", ".join(part for part in (MODEL, matchers) if part)
    return f"sum by ({by}) ({metric}{{{inside}}})"


_MODELS = {
    "namespace": "label_values(twolane_router_ready, namespace)",
    "model": 'label_values(twolane_router_ready{namespace=~"$namespace"}, model_deployment)',
}

_REQUESTS = [
    Panel(
        "Requests by outcome",
        {"{{outcome}}": _rate("twolane_router_requests_total", "outcome")},
        "reqps",
        "overloaded: add workers. unavailable: a pool has no worker. worker_lost: a worker died.",
        stacked=True,
    ),
    Panel(
        "Answers within their target, by lane",
        {
            "{{lane}}": _rate("twolane_router_slo_answers_total", "lane", 'outcome="met"')
            + f" / {_rate('twolane_router_slo_answers_total', 'lane')}"
        },
        "percentunit",
        "A missed ttft asks for prefill workers, a missed tpot for decode workers.",
    ),
    Panel(
        "Arrivals by lane",
        {"{{lane}}": _rate("twolane_router_arrivals_total", "lane")},
        "reqps",
        stacked=True,
    ),
    Panel(
        "Uncached prompt tokens a second, by lane",
        {"{{lane}}": _rate("twolane_router_uncached_tokens_total", "lane")},
        about="The work that prefill workers get.",
        stacked=True,
    ),
    Panel(
        "Requests at routers",
        {
            "running": _sum("twolane_router_running_requests", "model_deployment"),
            "waiting": _sum("twolane_router_waiting_answers", "model_deployment"),
            "held": _sum("twolane_router_held_requests", "model_deployment"),
        },
        about="held: a model scaled to zero wakes up.",
    ),
    Panel(
        "Share of prompt tokens found in a cache",
        {
            "cached": f"{_rate('twolane_router_cached_tokens_sum', 'model_deployment')}"
            f" / {_rate('twolane_router_input_tokens_sum', 'model_deployment')}"
        },
        "percentunit",
    ),
]
_LATENCY = [
    Panel(
        "First token, p50 and p99, short lane",
        {
            f"p{round(share * 100)}": _quantile(
                share, "twolane_router_ttft_seconds", "", f'{MODEL}, lane="short"'
            )
            for share in (0.5, 0.99)
        },
        "s",
        "The promise: flat, whatever the long lane does.",
    ),
    Panel(
        "First token, p50 and p99, long lane",
        {
            f"p{round(share * 100)}": _quantile(
                share, "twolane_router_ttft_seconds", "", f'{MODEL}, lane="long"'
            )
            for share in (0.5, 0.99)
        },
        "s",
    ),
    Panel(
        "Between tokens, p50 and p99",
        {
            f"p{round(share * 100)}": _quantile(share, "twolane_router_inter_token_latency_seconds")
            for share in (0.5, 0.99)
        },
        "s",
        "Grows with the rows a decode worker has at once.",
    ),
    Panel(
        "Whole answers, p99 by lane",
        {"{{lane}}": _quantile(0.99, "twolane_router_e2e_seconds", "lane")},
        "s",
    ),
    Panel(
        "Inside the router before workers, p99",
        {"p99": _quantile(0.99, "twolane_router_queue_seconds")},
        "s",
        "Validation, template and tokens. Above some milliseconds: more routers.",
        threshold=0.05,
    ),
    Panel(
        "Answers sent again to other workers",
        {"retries": _rate("twolane_router_retries_total", "model_deployment")},
    ),
]
_POOLS = [
    Panel(
        "Workers by role and state",
        {"{{role}} {{state}}": f"max by (role, state) (twolane_broker_workers{{{MODEL}}}) > 0"},
        about="draining: they end their requests and leave.",
    ),
    Panel(
        "Prompts that wait, by pool and lane",
        {"{{pool}} {{lane}}": _sum("twolane_worker_requests_waiting", "pool, lane")},
        about="A lane that only grows: more prefill.",
    ),
    Panel(
        "Answers that grow, by pool",
        {"{{pool}}": _sum("twolane_worker_requests_running", "pool")},
    ),
    Panel(
        "Use of pages, fullest worker of each pool",
        {"{{pool}}": f"max by (pool) (twolane_worker_kv_cache_usage_ratio{{{MODEL}}})"},
        "percentunit",
        "Above 0.9 with preemptions: more decode, or more memory for pages.",
        threshold=0.9,
    ),
    Panel(
        "Pages by state",
        {"{{pool}} {{state}}": _sum("twolane_worker_pages", "pool, state")},
        stacked=True,
    ),
    Panel(
        "Answers computed again for want of pages",
        {"{{pool}}": _rate("twolane_worker_preemptions_total", "pool")},
    ),
    Panel(
        "Engine steps, p99 by kind",
        {"{{kind}}": _quantile(0.99, "twolane_worker_step_seconds", "kind")},
        "s",
        "A mixed worker's prefill chunks show as long steps.",
    ),
    Panel(
        "Tokens a second, by kind",
        {"{{kind}}": _rate("twolane_worker_tokens_total", "kind")},
        stacked=True,
    ),
    Panel(
        "Waiting in a worker for the first token, p99",
        {"{{lane}}": _quantile(0.99, "twolane_worker_queue_seconds", "lane")},
        "s",
    ),
    Panel(
        "Endings at workers", {"{{outcome}}": _rate("twolane_worker_requests_total", "outcome")}, stacked=True
    ),
]
_TRANSFERS = [
    Panel(
        "Bytes a second, by transport",
        {"{{transport}}": _rate("twolane_worker_transfer_bytes_total", "transport")},
        "Bps",
        stacked=True,
    ),
    Panel(
        "Speed of one transfer, by transport",
        {
            "{{transport}}": f"{_rate('twolane_worker_transfer_bytes_total', 'transport')}"
            f" / {_rate('twolane_worker_transfer_seconds_sum', 'transport')}"
        },
        "Bps",
        "Both are counted at the same moment, so the ratio is the speed.",
    ),
    Panel(
        "Time of a transfer, p99",
        {"{{transport}}": _quantile(0.99, "twolane_worker_transfer_seconds", "transport")},
        "s",
    ),
    Panel(
        "Landing at the receiver",
        {
            "{{transport}}": f"{_rate('twolane_worker_landed_bytes_total', 'transport')}"
            f" / {_rate('twolane_worker_landing_seconds_total', 'transport')}"
        },
        "Bps",
        "The receiver's own time alone.",
    ),
    Panel(
        "Pages that wait for their transfer",
        {"{{pool}}": _sum("twolane_worker_pinned_pages", "pool")},
        about="Decode workers take too little.",
    ),
    Panel(
        "Writes that were refused",
        {"{{code}}": _rate("twolane_worker_pushes_refused_total", "code")},
    ),
    Panel(
        "Leases: out, and ended by time",
        {
            "out": f"max by (model_deployment) (twolane_broker_leases_out{{{MODEL}}})",
            "expired a second": _rate("twolane_broker_leases_expired_total", "model_deployment"),
        },
    ),
    Panel(
        "Answers checked against a replay",
        {"{{outcome}}": _rate("twolane_worker_parity_checks_total", "outcome")},
        about="differs must stay 0.",
    ),
    Panel(
        "Workers moved between pools",
        {"{{source}} to {{target}}": _rate("twolane_broker_role_moves_total", "source, target")},
    ),
    Panel(
        "Workers that went silent", {"lost": _rate("twolane_broker_workers_lost_total", "model_deployment")}
    ),
]
_OPERATOR_WHERE = 'namespace=~"$namespace"'
_OPERATOR = [
    Panel("Leaders", {"{{namespace}}": f"sum by (namespace) (twolane_operator_leader{{{_OPERATOR_WHERE}}})"}),
    Panel(
        "ModelDeployments that wait",
        {"{{namespace}}": f"max by (namespace) (twolane_operator_queue_objects{{{_OPERATOR_WHERE}}})"},
    ),
    Panel(
        "Reconciliations by outcome",
        {"{{outcome}}": _rate("twolane_operator_reconciliations_total", "outcome", "", _OPERATOR_WHERE)},
        stacked=True,
    ),
    Panel(
        "Time of a reconciliation, p50 and p99",
        {
            f"p{round(share * 100)}": _quantile(
                share, "twolane_operator_reconcile_seconds", "", _OPERATOR_WHERE
            )
            for share in (0.5, 0.99)
        },
        "s",
    ),
    Panel(
        "Actions",
        {"{{action}}": _rate("twolane_operator_actions_total", "action", "", _OPERATOR_WHERE)},
        stacked=True,
    ),
    Panel(
        "Requests to the API server",
        {
            "{{method}} {{status}}": _rate(
                "twolane_operator_api_requests_total", "method, status", "", _OPERATOR_WHERE
            )
        },
        "reqps",
        "403: the operator's roles are older than the operator.",
        stacked=True,
    ),
]

BOARDS = (
    Board("serving", "twolane / serving", {"Requests": _REQUESTS, "Latency": _LATENCY}, _MODELS),
    Board("workers", "twolane / workers", {"Pools": _POOLS, "Transfers": _TRANSFERS}, _MODELS),
    Board(
        "operator",
        "twolane / operator",
        {"Operator": _OPERATOR},
        {"namespace": "label_values(twolane_operator_leader, namespace)"},
    ),
)
