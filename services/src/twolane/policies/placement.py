"""Which workers take a request, and in which lane: the router's decision, shared with the simulator.

The view holds every worker that is connected, its load with the router's own submissions counted in,
and how much of the prompt each one has cached. The lane follows the *uncached* length at the worker
chosen: a long conversation with a short new turn is short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from twolane.core.request import Lane, Role
from twolane.policies.cost import DecodeCost, PrefillCost


@dataclass(frozen=True, slots=True)
class PlacementWorker:
    """One worker as placement sees it.

    Attributes:
        worker_id: its name; ties are broken by it.
        role: what it is for.
        lane: the lane it prefers; None: both.
        draining: it takes nothing new.
        cached_tokens: leading prompt tokens of this request in its prefix cache.
        waiting_tokens: uncached prompt tokens predicted to wait there.
        running: requests that decode there.
        predicted_peak_pages: pages its requests are predicted to hold at their peak.
        total_pages: its pages; 0 while unknown.
        boundary_tokens: longest uncached prompt of its short lane as it has fitted it; 0: the policy's.
        waiting_s: predicted seconds of prefill that wait there, by lane.
        prefill_cost: of its prefill steps as it has fitted it; None while unknown.
        decode_cost: of its decode steps likewise.
        held_tokens: tokens that its running requests hold.
    """

    worker_id: str
    role: Role
    lane: Lane | None = None
    draining: bool = False
    cached_tokens: int = 0
    waiting_tokens: int = 0
    running: int = 0
    predicted_peak_pages: int = 0
    total_pages: int = 0
    boundary_tokens: int = 0
    waiting_s: Mapping[Lane, float] = field(default_factory=dict)
    prefill_cost: PrefillCost | None = None
    decode_cost: DecodeCost | None = None
    held_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PlacementView:
    """What a placement policy may look at.

    Attributes:
        workers: every connected worker.
        prompt_tokens: length of the prompt.
        output_tokens: predicted length of the answer.
        page_tokens: tokens of a page.
        draw: uniform number in [0, 1) that picks among equals; None: the first by worker id.
        transfer_token_s: predicted seconds for the pages of a token to move between workers.
        tpot_limit_s: seconds per token that running answers may take.
        memory: the policy's own state as it returned it last; None at the start.
    """

    workers: tuple[PlacementWorker, ...]
    prompt_tokens: int
    output_tokens: int = 0
    page_tokens: int = 16
    draw: float | None = None
    transfer_token_s: float = 0.0
    tpot_limit_s: float = 0.05
    memory: Any = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes.

    Attributes:
        prefill_id: worker that computes the prompt; "" when nobody can take the request.
        decode_id: worker that generates; the same as prefill_id for a mixed worker.
        lane: lane of the prompt at the prefill worker.
        uncached_tokens: prompt tokens to compute there.
        no_capacity: why nobody can take the request, in words for the client; "" otherwise.
        memory: the policy's state for the next view.
    """

    prefill_id: str = ""
    decode_id: str = ""
    lane: Lane = Lane.SHORT
    uncached_tokens: int = 0
    no_capacity: str = ""
    memory: Any = None


class PlacementPolicy(Protocol):
    """Chooses the workers of a request."""

    name: str

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """Returns the workers, or a decision whose `no_capacity` says why there are none."""
        ...


@dataclass(frozen=True, slots=True)
class _Lanes:
    """Turns uncached lengths into lanes."""

    short_max_uncached_tokens: int

    def uncached(self, view: PlacementView, worker: PlacementWorker) -> int:
        """At least one prompt token is always computed."""
        return max(1, view.prompt_tokens - worker.cached_tokens)

    def at(self, view: PlacementView, worker: PlacementWorker) -> Lane:
        """The prompt's lane at the worker."""
        return Lane.SHORT if self.uncached(view, worker) <= self.boundary(worker) else Lane.LONG

    def boundary(self, worker: PlacementWorker) -> int:
        """Longest uncached prompt of the worker's short lane."""
        return worker.boundary_tokens or self.short_max_uncached_tokens

    def candidates(self, view: PlacementView, roles: Sequence[Role]) -> list[PlacementWorker]:
        """Workers of the roles that take new requests, those of the prompt's lane if there are any."""
        found = [w for w in view.workers if w.role in roles and not w.draining]
        matching = [w for w in found if w.lane in (None, self.at(view, w))]
        return matching or found


@dataclass(frozen=True, slots=True)
class _Choice:
    """A prefill and a decode worker with what the prompt costs there."""

    prefill: PlacementWorker
    decode: PlacementWorker


def _pick(
    workers: Sequence[PlacementWorker], key: Callable[[PlacementWorker], Any], draw: float | None
) -> PlacementWorker:
    """The worker with the smallest key; among equals by the draw, or the first by id."""
    if len(workers) == 1:
        return workers[0]
    keys = [key(worker) for worker in workers]
    best = min(keys)
    chosen = [worker for worker, mine in zip(workers, keys, strict=True) if mine == best]
    equals = sorted(chosen, key=lambda w: w.worker_id)
    return equals[0 if draw is None else min(int(draw * len(equals)), len(equals) - 1)]


def _refusal(view: PlacementView) -> str:
    """Why no pair and no mixed worker can take the request."""
    accepting = {worker.role for worker in view.workers if not worker.draining}
    if not accepting:
        return "no worker is ready"
    missing = "prefill" if Role.PREFILL not in accepting else "decode"
    return f"no {missing} worker is ready"


def _too_small(view: PlacementView, worker: PlacementWorker) -> bool:
    # The prompt and one more token must fit, or the worker could never start.
    needed = -(-(view.prompt_tokens + 1) // view.page_tokens)
    return 0 < worker.total_pages < needed


class LeastUncached:
    """Prefill where prompt and queue are predicted to be computed first, decode where memory stays free.

    Prefill: least (waiting uncached tokens + own uncached tokens). Decode: least predicted peak pages
    with this request's own, as a share of the pool, then fewest running. A mixed worker competes with
    the pair as a prefill worker and loses ties: it would disturb its running answers.
    """

    name = "least_uncached"

    def __init__(self, short_max_uncached_tokens: int = 256) -> None:
        self._lanes = _Lanes(short_max_uncached_tokens)

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """See the class."""
        del now_s
        lanes = self._lanes
        choices: list[_Choice] = []
        prefills = lanes.candidates(view, (Role.PREFILL,))
        decodes = [w for w in view.workers if w.role is Role.DECODE and not w.draining]
        mixed = lanes.candidates(view, (Role.MIXED,))
        fitting_decodes = [w for w in decodes if not _too_small(view, w)]
        fitting_mixed = [w for w in mixed if not _too_small(view, w)]

        wait = self._wait(view, [*prefills, *mixed])

        def memory(worker: PlacementWorker) -> tuple[float, int]:
            return _peak_share(view, worker), worker.running

        if prefills and fitting_decodes:
            pair = _pick(prefills, wait, view.draw), _pick(fitting_decodes, memory, view.draw)
            choices.append(_Choice(*pair))
        if fitting_mixed:
            worker = _pick(fitting_mixed, lambda w: (wait(w), *memory(w)), view.draw)
            choices.append(_Choice(worker, worker))
        if not choices:
            return Placement(no_capacity=_no_capacity(view, bool(prefills and decodes) or bool(mixed)))
        best = min(choices, key=lambda choice: wait(choice.prefill))
        return _placement(lanes, view, best, None)

    def _wait(
        self, view: PlacementView, workers: Sequence[PlacementWorker]
    ) -> Callable[[PlacementWorker], float]:
        """How long until the prompt is computed at a worker, in any unit that they share."""
        del workers
        return lambda worker: worker.waiting_tokens + self._lanes.uncached(view, worker)


class LeastLoaded:
    """Baseline: fewest waiting tokens and fewest running answers, blind to length and cache."""

    name = "least_loaded"

    def __init__(self, short_max_uncached_tokens: int = 256) -> None:
        self._lanes = _Lanes(short_max_uncached_tokens)

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """See the class."""
        del now_s
        pools = _pools(view)
        if pools is None:
            return Placement(no_capacity=_refusal(view))
        prefills, decodes = pools
        if prefills is decodes:
            worker = _pick(prefills, lambda w: (w.waiting_tokens, w.running), view.draw)
            return _placement(self._lanes, view, _Choice(worker, worker), None)
        prefill = _pick(prefills, lambda w: w.waiting_tokens, view.draw)
        decode = _pick(decodes, lambda w: w.running, view.draw)
        return _placement(self._lanes, view, _Choice(prefill, decode), None)


class RoundRobin:
    """Baseline: one after the other, blind to everything."""

    name = "round_robin"

    def __init__(self, short_max_uncached_tokens: int = 256) -> None:
        self._lanes = _Lanes(short_max_uncached_tokens)

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """See the class; the memory is the number of requests placed."""
        del now_s
        turn = view.memory or 0
        pools = _pools(view)
        if pools is None:
            return Placement(no_capacity=_refusal(view), memory=turn)
        prefills, decodes = pools
        prefill = prefills[turn % len(prefills)]
        decode = prefill if prefills is decodes else decodes[turn % len(decodes)]
        return _placement(self._lanes, view, _Choice(prefill, decode), turn + 1)


class PowerOfTwo:
    """Baseline: of two drawn workers the one with fewer waiting tokens or running answers."""

    name = "power_of_two"

    def __init__(self, short_max_uncached_tokens: int = 256) -> None:
        self._lanes = _Lanes(short_max_uncached_tokens)

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """See the class; without a draw it looks at the first two."""
        del now_s
        pools = _pools(view)
        if pools is None:
            return Placement(no_capacity=_refusal(view))
        prefills, decodes = pools
        prefill = min(_two(prefills, view.draw), key=lambda w: w.waiting_tokens)
        decode = prefill if prefills is decodes else min(_two(decodes, view.draw), key=lambda w: w.running)
        return _placement(self._lanes, view, _Choice(prefill, decode), None)


def _two(workers: Sequence[PlacementWorker], draw: float | None) -> list[PlacementWorker]:
    """Two different workers by one draw, or the only one."""
    count = len(workers)
    if count == 1:
        return [workers[0]]
    first, second = divmod(int((draw or 0.0) * count * (count - 1)), count - 1)
    return [workers[first], workers[second + (second >= first)]]


def _peak_share(view: PlacementView, worker: PlacementWorker) -> float:
    """Predicted peak use of the worker's pool with this request in it; cached pages are shared."""
    own = -(-(view.prompt_tokens - worker.cached_tokens + view.output_tokens) // view.page_tokens)
    return (worker.predicted_peak_pages + own) / max(worker.total_pages, 1)


def _pools(view: PlacementView) -> tuple[list[PlacementWorker], list[PlacementWorker]] | None:
    """Prefill and decode workers by id; the same list twice: mixed workers; None: neither."""
    ready = sorted((w for w in view.workers if not w.draining), key=lambda w: w.worker_id)
    prefills = [w for w in ready if w.role is Role.PREFILL]
    decodes = [w for w in ready if w.role is Role.DECODE]
    if prefills and decodes:
        return prefills, decodes
    mixed = [w for w in ready if w.role is Role.MIXED]
    return (mixed, mixed) if mixed else None


def _no_capacity(view: PlacementView, ready_but_small: bool) -> str:
    if not ready_but_small:
        return _refusal(view)
    pages = -(-(view.prompt_tokens + 1) // view.page_tokens)
    return f"no worker has the {pages} pages that a prompt of {view.prompt_tokens} tokens needs"


def _placement(lanes: _Lanes, view: PlacementView, choice: _Choice, memory: Any) -> Placement:
    return Placement(
        prefill_id=choice.prefill.worker_id,
        decode_id=choice.decode.worker_id,
        lane=lanes.at(view, choice.prefill),
        uncached_tokens=lanes.uncached(view, choice.prefill),
        memory=memory,
    )
