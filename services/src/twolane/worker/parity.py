"""The parity probe: replays a sample of transferred requests on this worker alone and compares the tokens.

Pages that arrived damaged, stale or in another layout give fluent wrong answers and a healthy status; nothing
but a second computation shows it. The request table reports finished requests here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter

from twolane.core.request import FinishReason, Phase, SamplingParams
from twolane.engine.sequence import Sequence
from twolane.rpc.convert import sampling_to_proto
from twolane.rpc.words import finish_reason_from_proto, phase_to_proto
from twolane.telemetry import metrics
from twolane.v1 import worker_pb2 as pb
from twolane.worker.request import Outbox

log = logging.getLogger(__name__)

# Tokens compared at most: a wrong page shows within the first few.
MAX_TOKENS = 32
TIMEOUT_MS = 120_000
# Behind everything that clients asked for.
PRIORITY = -1000


@dataclass
class _Check:
    request_id: str
    wanted: list[int]
    got: list[int] = field(default_factory=list)


class ParityProbe:
    """Compares some answers with what this worker computes without a transfer.

    Args:
        share: of transferred requests that are replayed; 0: none.
        idle: whether a replay would make nobody wait.
        submit: takes a request as from a router.
        registry: of the metrics.
    """

    def __init__(
        self,
        share: float,
        idle: Callable[[], bool],
        submit: Callable[[Outbox, pb.Submit], None],
        registry: CollectorRegistry = metrics.registry,
    ) -> None:
        self._share = share
        self._idle = idle
        self._submit = submit
        self._due = 0.0
        self._checks: dict[int, _Check] = {}
        self._last = 0
        self.outbox = Outbox(self._take)
        self._count = Counter(
            "twolane_worker_parity_checks",
            "Answers after a transfer, computed again without one.",
            ["outcome"],
            registry=registry,
        )

    def finished(self, sequence: Sequence) -> None:
        """An answer whose prompt was transferred has ended as it should; it may be replayed."""
        # What came while the worker was busy is not made up for: it would be a burst of replays.
        self._due = min(self._due, 1.0) + self._share
        if self._due < 1.0 or sequence.n_generated == 0 or not self._idle():
            return
        self._due -= 1.0
        prompt = list(sequence.tokens[: sequence.n_prompt])
        wanted = list(sequence.tokens[sequence.n_prompt :])[:MAX_TOKENS]
        # After the table has let go of the request that ended.
        asyncio.get_running_loop().call_soon(
            self._replay, sequence.request_id, prompt, wanted, sequence.sampling
        )

    def _replay(
        self, request_id: str, prompt: list[int], wanted: list[int], sampling: SamplingParams
    ) -> None:
        self._last += 1
        self._checks[self._last] = _Check(request_id, wanted)
        again = dataclasses.replace(sampling, max_tokens=len(wanted), top_logprobs=None)
        submit = pb.Submit(
            stream_id=self._last,
            request_id=f"parity-{self._last}-{request_id}",
            phase=phase_to_proto(Phase.BOTH),
            prompt_tokens=prompt,
            sampling=sampling_to_proto(again),
            timeout_ms=TIMEOUT_MS,
            priority=PRIORITY,
            # No page that came by a transfer may serve as prefix.
            cache_salt=secrets.token_hex(8),
        )
        self._submit(self.outbox, submit)

    def _take(self, message: pb.WorkerMessage) -> None:
        for event in message.step.events:
            check = self._checks.get(event.stream_id)
            if check is None:
                continue
            check.got += event.token_ids
            reason = finish_reason_from_proto(event.finish_reason)
            if reason is not None:
                del self._checks[event.stream_id]
                self._judge(check, reason, event.error.message)

    def _judge(self, check: _Check, reason: FinishReason, error: str) -> None:
        facts = {"request_id": check.request_id, "tokens": len(check.wanted)}
        if reason is FinishReason.ERROR:
            self._count.labels("failed").inc()
            log.info("parity check failed: %s", error, extra=facts)
        elif check.got == check.wanted:
            self._count.labels("same").inc()
        else:
            self._count.labels("differs").inc()
            pairs = zip(check.got, check.wanted, strict=False)
            shorter = min(len(check.got), len(check.wanted))
            at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)
            log.error(
                "an answer after a transfer differs from the same computed here, from token %d on",
                at,
                extra=facts,
            )
