"""One simulated worker without a cluster, for tests of its decode half."""

from __future__ import annotations

from twolane.policies.decode import DecodePolicy
from twolane.policies.registry import by_name
from twolane.policies.roles import Group
from twolane.policies.settings import PrefillSettings
from twolane.sim.decode_side import DecodeSide
from twolane.sim.events import EventQueue
from twolane.sim.prefill_side import PrefillSide
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest
from twolane.sim.worker import SimWorker


class Landing:
    """Lands admitted requests after a while, has lost ones computed again, and notes who finished."""

    def __init__(self, events: EventQueue, delay_s: float = 0.0) -> None:
        self.events = events
        self.delay_s = delay_s
        self.finished: dict[int, float] = {}

    def decode_admitted(self, request: SimRequest, side: DecodeSide) -> None:
        """Pages travel."""
        self.events.at(self.events.now_s + self.delay_s, self._land, (request, side))

    def _land(self, arrival: tuple[SimRequest, DecodeSide]) -> None:
        request, side = arrival
        if not request.prefilled:
            request.generated_tokens, request.prefilled = 1, True
        side.landed((request, request.lease))

    def decode_preempted(self, request: SimRequest, side: DecodeSide) -> None:
        """It is queued here."""
        request.restart()
        assert side.prompts is not None
        side.prompts.add(request, front=True)

    def prefill_begun(self, request: SimRequest, side: PrefillSide) -> None:
        """Its pages are here already."""

    def prefill_finished(self, request: SimRequest, side: PrefillSide) -> None:
        """Its answer goes on."""
        request.generated_tokens += 1
        request.prefilled = True
        assert side.answers is not None
        if request.generated_tokens < request.output_tokens:
            side.answers.stay(request)
        else:
            side.answers.give_back(request.name)
            request.last_token_s = self.events.now_s
            self.decode_finished(request)

    def prefill_idle(self, side: PrefillSide) -> None:
        """Nothing is left."""
        assert side.is_empty

    def offered(self, request: SimRequest) -> bool:
        """Always."""
        return True

    def decode_finished(self, request: SimRequest) -> None:
        """Once each."""
        assert request.index not in self.finished
        self.finished[request.index] = request.last_token_s

    def decode_idle(self, side: DecodeSide) -> None:
        """Nothing is left, no page either."""
        assert side.used_tokens == 0
        assert side.left_tokens == 0


def decode_side(
    events: EventQueue, profile: EngineProfile, policy: DecodePolicy, max_rows: int, host: Landing
) -> DecodeSide:
    """The decode half of a worker whose other half runs fcfs."""
    side = DecodeSide(events, profile, policy, max_rows)
    prompts = PrefillSide(events, profile, by_name("fcfs"), PrefillSettings(), lambda: 1.0)
    SimWorker(0, Group.DECODE, prompts, side)
    side.host = prompts.host = host
    return side


def wants(side: DecodeSide, request: SimRequest) -> None:
    """A request comes whose prompt begins at once elsewhere."""
    side.offer(request)
    side.begun(request)
