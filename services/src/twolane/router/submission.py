"""Places an answer and makes the messages for its one or two workers.

`dispatch.py` sends them, first for every answer of a request and once more for an answer whose workers
gave up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from twolane.core.errors import Unavailable
from twolane.core.request import Phase
from twolane.policies.placement import Placement
from twolane.router.answer import Answer
from twolane.router.cluster import Cluster
from twolane.router.leg import Leg
from twolane.router.placing import Placer
from twolane.router.sessions import WorkerSession
from twolane.router.targets import SloTargets
from twolane.router.worker_books import Charge
from twolane.rpc.convert import sampling_to_proto
from twolane.rpc.words import lane_to_proto, phase_to_proto
from twolane.v1 import worker_pb2

RETRY_UNAVAILABLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Submission:
    """A message that is ready to be sent; its worker's books count it already."""

    session: WorkerSession
    leg: Leg
    message: worker_pb2.Submit

    def send(self) -> None:
        """Sends it."""
        self.session.submit(self.leg, self.message)


class Submitter:
    """Makes submissions."""

    def __init__(self, cluster: Cluster, placer: Placer, targets: SloTargets) -> None:
        self._cluster = cluster
        self._placer = placer
        self._targets = targets

    def prepare(self, answer: Answer, timeout_s: float) -> list[Submission]:
        """The messages for the workers of an answer.

        Raises:
            Unavailable: nobody can take it; the reason is in the message.
        """
        task = answer.task
        placement = self._placer.place(task, answer.avoid)
        if placement.no_capacity:
            raise Unavailable(f"{placement.no_capacity}; retry later", retry_after_s=RETRY_UNAVAILABLE_S)
        message = self._message(answer, placement, timeout_s)
        answer.uncached_tokens = placement.uncached_tokens
        now_s = time.monotonic()
        pages = self._placer.predicted_pages(task)
        first = self._cluster.session(placement.prefill_id)
        if placement.decode_id == placement.prefill_id:
            charge = Charge(placement.uncached_tokens, pages, 1, now_s, placement.lane)
            leg = Leg(first, charge, answer.on_first_events, answer.on_lost)
            answer.attach(placement.lane, leg, None)
            return [Submission(first, leg, _with_phase(message, Phase.BOTH, None))]
        second = self._cluster.session(placement.decode_id)
        waiting = Charge(placement.uncached_tokens, 0, 0, now_s, placement.lane)
        prefill = Leg(first, waiting, answer.on_first_events, answer.on_lost)
        decode = Leg(second, Charge(0, pages, 1, now_s), answer.on_decode_events, answer.on_lost)
        answer.attach(placement.lane, prefill, decode)
        # Decode first: it reserves pages while the prompt still queues.
        return [
            Submission(second, decode, _with_phase(message, Phase.DECODE, first)),
            Submission(first, prefill, _with_phase(message, Phase.PREFILL, second)),
        ]

    def _message(self, answer: Answer, placement: Placement, timeout_s: float) -> worker_pb2.Submit:
        request, task = answer.request, answer.task
        # Peers may still hold parts of an attempt that failed: the next one has another name.
        attempt = f"-retry{answer.attempts}" if answer.attempts else ""
        ttft_ms = (
            self._targets.ttft_ms[placement.lane] if request.ttft_slo_ms is None else request.ttft_slo_ms
        )
        return worker_pb2.Submit(
            request_id=f"{request.request_id}-{answer.index}{attempt}",
            prompt_tokens=task.prompt,
            sampling=sampling_to_proto(task.sampling),
            lane=lane_to_proto(placement.lane),
            timeout_ms=max(1, int(timeout_s * 1000)),
            priority=request.priority,
            cache_salt=request.cache_salt,
            traceparent=request.traceparent,
            ttft_slo_ms=ttft_ms,
            generated_tokens=task.generated_tokens,
        )


def _with_phase(shared: worker_pb2.Submit, phase: Phase, peer: WorkerSession | None) -> worker_pb2.Submit:
    message = worker_pb2.Submit()
    message.CopyFrom(shared)
    message.phase = phase_to_proto(phase)
    if peer is not None:
        message.peer.worker_id = peer.worker_id
        message.peer.incarnation = peer.info.incarnation
        message.peer.address = peer.info.address
    return message
