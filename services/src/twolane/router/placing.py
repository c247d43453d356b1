"""Builds the placement policy's view from sessions and prefix index, and asks the policy.

`dispatch.py` calls it once per answer; the policy itself is pure and shared with the simulator.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Sequence

from twolane.core.prefix import page_hashes
from twolane.core.request import Role
from twolane.policies.placement import Placement, PlacementPolicy, PlacementView, PlacementWorker
from twolane.router.answer import AnswerTask
from twolane.router.cluster import Cluster
from twolane.router.sessions import WorkerSession
from twolane.rpc.words import lane_from_proto, role_from_proto

# Share of the newest answer's length in the running estimate.
_LENGTH_WEIGHT = 0.05
_FIRST_LENGTH_TOKENS = 128.0
# A modest transfer; it only has to tell a transfer that matters from one that does not.
_TRANSFER_BYTES_PER_S = 1e9
# Hashing so many tokens takes about as long as handing the work to a thread.
_INLINE_HASH_TOKENS = 2048


class Placer:
    """Asks the policy with what the router knows."""

    def __init__(
        self, cluster: Cluster, policy: PlacementPolicy, tpot_limit_s: float, seed: int | None = None
    ) -> None:
        """`tpot_limit_s`: seconds per token of running answers; `seed` makes choices among equals repeat."""
        self._cluster = cluster
        self._policy = policy
        self._tpot_limit_s = tpot_limit_s
        self._memory: object = None
        self._random = random.Random(seed)
        self._length_tokens = _FIRST_LENGTH_TOKENS

    async def hash_prompts(self, prompts: Sequence[list[int]], cache_salt: str) -> list[list[bytes]]:
        """Names of the prompts' pages; long prompts are hashed on a thread."""
        fingerprint = self._cluster.fingerprint
        if fingerprint is None:
            return [[] for _ in prompts]
        page_tokens = fingerprint.page_tokens

        def work() -> list[list[bytes]]:
            return [page_hashes(prompt, page_tokens, cache_salt) for prompt in prompts]

        long = sum(map(len, prompts)) > _INLINE_HASH_TOKENS
        return await asyncio.to_thread(work) if long else work()

    def place(self, task: AnswerTask, avoid: Collection[str] = ()) -> Placement:
        """Where an answer should go now, `avoid` left out."""
        page_tokens, prompt_tokens = self._page_tokens, len(task.prompt)
        cached = self._cluster.prefixes.cached_pages(task.hashes)
        workers = []
        for session in self._candidates(avoid):
            # At least one prompt token is always computed.
            tokens = min(cached.get(session.worker_id, 0) * page_tokens, prompt_tokens - 1)
            workers.append(_as_placement_worker(session, tokens))
        view = PlacementView(
            workers=tuple(workers),
            prompt_tokens=prompt_tokens,
            output_tokens=self._predicted_tokens(task),
            page_tokens=page_tokens,
            draw=self._random.random(),
            transfer_token_s=self._transfer_token_s,
            tpot_limit_s=self._tpot_limit_s,
            memory=self._memory,
        )
        placement = self._policy.decide(time.monotonic(), view)
        self._memory = placement.memory
        return placement

    def _candidates(self, avoid: Collection[str]) -> list[WorkerSession]:
        """Workers that take requests; those that the broker misses only where their role has no other."""
        open_to_all = [s for s in self._cluster.sessions if s.accepts and s.worker_id not in avoid]
        trusted = {session.info.role for session in open_to_all if not self._cluster.doubted(session)}
        return [s for s in open_to_all if s.info.role not in trusted or not self._cluster.doubted(s)]

    def predicted_pages(self, task: AnswerTask) -> int:
        """Pages that the answer is predicted to hold at its peak."""
        return -(-(len(task.prompt) + self._predicted_tokens(task)) // self._page_tokens)

    @property
    def _page_tokens(self) -> int:
        """Tokens of a page; 1 while no worker is known."""
        fingerprint = self._cluster.fingerprint
        return 1 if fingerprint is None else fingerprint.page_tokens

    @property
    def _transfer_token_s(self) -> float:
        """Predicted seconds for the pages of one token to move."""
        fingerprint = self._cluster.fingerprint
        if fingerprint is None:
            return 0.0
        element_bytes = 4 if fingerprint.kv_dtype == "float32" else 2
        page_bytes = fingerprint.page_elements * element_bytes
        return page_bytes / fingerprint.page_tokens / _TRANSFER_BYTES_PER_S

    def _predicted_tokens(self, task: AnswerTask) -> int:
        """How long an answer is likely to get."""
        return min(task.sampling.max_tokens, int(self._length_tokens))

    def learn_length(self, tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._length_tokens += _LENGTH_WEIGHT * (tokens - self._length_tokens)


def _as_placement_worker(session: WorkerSession, cached_tokens: int) -> PlacementWorker:
    info, books = session.info, session.books
    return PlacementWorker(
        worker_id=session.worker_id,
        role=role_from_proto(info.role) or Role.MIXED,
        lane=lane_from_proto(info.lane),
        draining=info.draining,
        cached_tokens=cached_tokens,
        waiting_tokens=books.waiting_tokens,
        running=books.running,
        predicted_peak_pages=books.predicted_peak_pages,
        total_pages=books.load.total_pages,
        boundary_tokens=books.load.boundary_tokens,
        waiting_s=books.waiting_s(),
        prefill_cost=books.prefill_cost,
        decode_cost=books.decode_cost,
        held_tokens=books.load.held_tokens,
    )
