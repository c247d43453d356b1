"""Which padded step shapes get a captured graph, and when a step should use one.

Pure decisions: the grid comes from the steps observed so far, within a memory budget that is taken from the
KV pool; a step uses the smallest bucket that covers it unless padding would cost more than launching kernels
one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """Which attention kernel a bucket's graph holds."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class Bucket:
    """A step shape: at most `n_rows` sequences with `n_tokens` tokens in all (equal for decode).

    A (length x batch) cell is the bucket of batch rows and length * batch tokens; a bucket of total tokens
    has as many rows as a short step may have.
    """

    kind: Kind
    n_rows: int
    n_tokens: int

    def covers(self, n_rows: int, n_tokens: int) -> bool:
        """Whether a step of this size fits."""
        return n_rows <= self.n_rows and n_tokens <= self.n_tokens


@dataclass(frozen=True, slots=True)
class Costs:
    """What decides between replaying a padded graph and launching kernels one by one; seconds and bytes.

    Attributes:
        launch_s: time a replay saves over eager launches.
        token_s: time of one padded token.
        row_s: time of one padded row (its logits).
        fixed_bytes: memory of one graph beside activations.
        token_bytes: activations per token; graphs share them, so the largest bucket counts.
        row_bytes: static inputs and logits per row.
    """

    launch_s: float
    token_s: float
    row_s: float
    fixed_bytes: int
    token_bytes: int
    row_bytes: int

    def saving_s(self, bucket: Bucket, n_rows: int, n_tokens: int) -> float:
        """What replaying `bucket` for this step saves; negative when padding costs more."""
        padding_s = (bucket.n_tokens - n_tokens) * self.token_s + (bucket.n_rows - n_rows) * self.row_s
        return self.launch_s - padding_s

    def memory_bytes(self, buckets: Iterable[Bucket]) -> int:
        """Memory of a set of captured buckets."""
        captured = list(buckets)
        shared = max((bucket.n_tokens for bucket in captured), default=0) * self.token_bytes
        return shared + sum(self.fixed_bytes + bucket.n_rows * self.row_bytes for bucket in captured)


@dataclass(frozen=True, slots=True)
class Gate:
    """How much padding a step may have: much while nobody waits, little while a queue does.

    Attributes:
        idle_ratio: padded over real tokens allowed with an empty queue.
        busy_ratio: the same from `busy_depth` waiting requests on.
        busy_depth: queue length that counts as busy.
    """

    idle_ratio: float = 1.0
    busy_ratio: float = 0.25
    busy_depth: int = 8

    def allowed_ratio(self, queue_depth: int) -> float:
        """Falls linearly from idle to busy."""
        share = min(queue_depth, self.busy_depth) / self.busy_depth
        return self.idle_ratio + (self.busy_ratio - self.idle_ratio) * share

    def allows(self, bucket: Bucket, n_tokens: int, queue_depth: int) -> bool:
        """Whether padding `n_tokens` to the bucket is worth it with so many requests waiting."""
        return bucket.n_tokens - n_tokens <= self.allowed_ratio(queue_depth) * n_tokens


@dataclass(slots=True)
class StepHistogram:
    """Shapes of the steps a worker has run: (kind, rows, tokens) to how often."""

    counts: Counter[tuple[Kind, int, int]] = field(default_factory=Counter)

    def add(self, kind: Kind, n_rows: int, n_tokens: int) -> None:
        """Counts one step."""
        self.counts[(kind, n_rows, n_tokens)] += 1


@dataclass(frozen=True, slots=True)
class Grid:
    """The captured buckets."""

    buckets: tuple[Bucket, ...] = ()

    def fit(self, kind: Kind, n_rows: int, n_tokens: int) -> Bucket | None:
        """The bucket with the fewest tokens, then rows, that covers the step; None if none does."""
        fitting = [
            bucket for bucket in self.buckets if bucket.kind is kind and bucket.covers(n_rows, n_tokens)
        ]
        return min(fitting, key=lambda bucket: (bucket.n_tokens, bucket.n_rows), default=None)

    def choose(
        self, kind: Kind, n_rows: int, n_tokens: int, gate: Gate, queue_depth: int = 0
    ) -> Bucket | None:
        """The bucket to replay, or None for an eager step."""
        bucket = self.fit(kind, n_rows, n_tokens)
        return bucket if bucket is not None and gate.allows(bucket, n_tokens, queue_depth) else None


@dataclass(frozen=True, slots=True)
class GridLimits:
    """What a grid may hold.

    Attributes:
        budget_bytes: memory for graphs, taken from the KV pool.
        max_rows: largest batch.
        max_short_tokens: largest short prefill step.
        token_multiple: prefill buckets are multiples of this.
    """

    budget_bytes: int
    max_rows: int
    max_short_tokens: int
    token_multiple: int = 16


def first_grid(limits: GridLimits, costs: Costs) -> Grid:
    """The grid before anything was observed: powers of two, small ones first, as many as the budget holds."""
    decode = [Bucket(Kind.DECODE, rows, rows) for rows in _powers(1, limits.max_rows)]
    totals = _powers(limits.token_multiple, limits.max_short_tokens)
    prefill = [Bucket(Kind.PREFILL, min(limits.max_rows, total), total) for total in totals]
    chosen: list[Bucket] = []
    for bucket in sorted(decode + prefill, key=lambda bucket: bucket.n_tokens):
        if costs.memory_bytes([*chosen, bucket]) <= limits.budget_bytes:
            chosen.append(bucket)
    return Grid(tuple(chosen))


def plan_grid(observed: Mapping[tuple[Kind, int, int], int], limits: GridLimits, costs: Costs) -> Grid:
    """Picks buckets greedily by time saved per byte over the observed steps, until the budget is spent.

    Candidates are the observed shapes themselves, rounded up: their (length x batch) cells, and their total
    tokens with the rows of any observed step. The saving of a set is monotone and submodular, so greedy is
    within a constant of the best set.
    """
    chosen: list[Bucket] = []
    best = dict.fromkeys(observed, 0.0)
    candidates = _candidates(observed, limits)
    while candidates:
        spent = costs.memory_bytes(chosen)
        ranked = []
        for bucket in candidates:
            gain = sum(
                count * max(0.0, costs.saving_s(bucket, shape[1], shape[2]) - best[shape])
                for shape, count in observed.items()
                if shape[0] is bucket.kind and bucket.covers(shape[1], shape[2])
            )
            added = costs.memory_bytes([*chosen, bucket]) - spent
            if gain > 0 and spent + added <= limits.budget_bytes:
                ranked.append((gain / added, bucket.n_rows, bucket.n_tokens, bucket))
        if not ranked:
            break
        pick = max(ranked, key=lambda entry: entry[:3])[3]
        chosen.append(pick)
        candidates.remove(pick)
        for shape in observed:
            if shape[0] is pick.kind and pick.covers(shape[1], shape[2]):
                best[shape] = max(best[shape], costs.saving_s(pick, shape[1], shape[2]))
    return Grid(tuple(chosen))


def _candidates(observed: Mapping[tuple[Kind, int, int], int], limits: GridLimits) -> list[Bucket]:
    found: dict[Bucket, None] = {}
    row_steps = sorted({_power(n_rows) for kind, n_rows, _ in observed if kind is Kind.PREFILL})
    for kind, n_rows, n_tokens in sorted(observed, key=lambda shape: shape[1:]):
        if n_rows > limits.max_rows:
            continue
        if kind is Kind.DECODE:
            found[Bucket(kind, n_rows, n_rows)] = None
            continue
        total = -(-n_tokens // limits.token_multiple) * limits.token_multiple
        if total <= limits.max_short_tokens:
            for rows in row_steps:
                if rows >= n_rows:
                    found[Bucket(kind, min(rows, limits.max_rows), total)] = None
    return list(found)


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _powers(first: int, last: int) -> list[int]:
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return [*values, last]
