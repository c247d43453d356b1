"""How busy a worker is, as this router knows: the worker's last report and what was sent since.

A report is some hundred milliseconds old; without counting its own submissions a router would send a
whole burst to the worker that looked idle. `sessions.py` keeps one per worker, placement reads it.
"""

from __future__ import annotations

from collections import deque

from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.v1 import worker_pb2

# A report that left the worker before our request got there may still be on its way for so long.
REPORT_LAG_S = 0.05


class Charge:
    """What one submission is predicted to cost its worker.

    Attributes:
        tokens: uncached prompt tokens that wait; 0 once they are computed.
        pages: pages held at the answer's peak.
        running: 1 if it decodes there.
        at_s: when it was sent.
        lane: in which its tokens wait.
        reported: a report later than the submission has come.
    """

    __slots__ = ("at_s", "lane", "pages", "reported", "running", "tokens")

    def __init__(self, tokens: int, pages: int, running: int, at_s: float, lane: Lane = Lane.SHORT) -> None:
        self.tokens = tokens
        self.pages = pages
        self.running = running
        self.at_s = at_s
        self.lane = lane
        self.reported = False


class WorkerBooks:
    """One worker's load.

    Attributes:
        load: the worker's last report.
        prefill_cost: of its prefill steps by that report; None until it has fitted it.
        decode_cost: of its decode steps likewise.
    """

    def __init__(self) -> None:
        self.load = worker_pb2.Load()
        self.prefill_cost: PrefillCost | None = None
        self.decode_cost: DecodeCost | None = None
        self._costs = worker_pb2.StepCosts()
        self._unreported: deque[Charge] = deque()
        self._fresh_tokens = dict.fromkeys(Lane, 0)
        self._fresh = Charge(0, 0, 0, 0.0)
        self._own = Charge(0, 0, 0, 0.0)

    def charge(self, charge: Charge) -> None:
        """Counts a submission that is about to be sent."""
        self._unreported.append(charge)
        self._add_fresh(charge, 1)
        _add(self._own, charge, 1)

    def report(self, load: worker_pb2.Load, now_s: float) -> None:
        """Takes the worker's own figures; submissions it must have seen count no longer beside them."""
        self.load = load
        if load.costs != self._costs:
            self._learn(load.costs)
        while self._unreported and self._unreported[0].at_s <= now_s - REPORT_LAG_S:
            charge = self._unreported.popleft()
            if not charge.reported:
                charge.reported = True
                self._add_fresh(charge, -1)

    def prompt_done(self, charge: Charge) -> None:
        """The first token came: the prompt waits no longer."""
        if not charge.reported:
            self._fresh.tokens -= charge.tokens
            self._fresh_tokens[charge.lane] -= charge.tokens
        self._own.tokens -= charge.tokens
        charge.tokens = 0

    def settle(self, charge: Charge) -> None:
        """The submission is over, however it ended."""
        if not charge.reported:
            charge.reported = True
            self._add_fresh(charge, -1)
        _add(self._own, charge, -1)

    @property
    def waiting_tokens(self) -> int:
        """Uncached prompt tokens predicted to wait."""
        return max(self.load.waiting_tokens + self._fresh.tokens, self._own.tokens)

    def waiting_s(self) -> dict[Lane, float]:
        """Seconds of prefill predicted to wait, by lane: as reported, and what was sent since."""
        token_s = self.prefill_cost.token_s if self.prefill_cost is not None else 0.0
        return {
            Lane.SHORT: self.load.waiting_short_s + token_s * self._fresh_tokens[Lane.SHORT],
            Lane.LONG: self.load.waiting_long_s + token_s * self._fresh_tokens[Lane.LONG],
        }

    @property
    def running(self) -> int:
        """Answers predicted to decode."""
        return max(self.load.running + self._fresh.running, self._own.running)

    @property
    def predicted_peak_pages(self) -> int:
        """Pages predicted to be held at the peak."""
        return max(self.load.predicted_peak_pages + self._fresh.pages, self._own.pages)

    def _add_fresh(self, charge: Charge, sign: int) -> None:
        _add(self._fresh, charge, sign)
        self._fresh_tokens[charge.lane] += sign * charge.tokens

    def _learn(self, costs: worker_pb2.StepCosts) -> None:
        self._costs = costs
        if costs.prefill_constant_s > 0.0:
            self.prefill_cost = PrefillCost.known(
                costs.prefill_constant_s,
                costs.prefill_attention_s,
                costs.prefill_token_s,
                costs.prefill_cached_token_s,
            )
        if costs.decode_constant_s > 0.0:
            self.decode_cost = DecodeCost.known(
                costs.decode_constant_s, costs.decode_held_token_s, costs.decode_row_s
            )


def _add(total: Charge, charge: Charge, sign: int) -> None:
    total.tokens += sign * charge.tokens
    total.pages += sign * charge.pages
    total.running += sign * charge.running
