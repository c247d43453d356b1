"""Prompts that wait for prefill, and the batch that the policy makes of them.

The worker's loop asks for a batch before each engine step and settles it after. The queue owns the
pages of a prompt from its first chunk on; the worker gives them back when the request ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twolane.core.prefix import page_hashes
from twolane.core.request import Lane
from twolane.engine.pages import OutOfPages, PagePool
from twolane.engine.sequence import Sequence
from twolane.policies.cost import PrefillCost
from twolane.policies.lanes import boundary_tokens, lane_of
from twolane.policies.prefill import PrefillPolicy, PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings


@dataclass
class Prompt:
    """A prompt and how far it is.

    Attributes:
        sequence: tokens and pages; every token it holds is computed before it leaves the queue.
        arrival_s: when it came.
        deadline_s: when its first token is due, or None.
        priority: higher goes first among equals.
        hashes: names of its full pages.
        usable: those that may be taken from the cache.
        lane: by its uncached length at arrival.
        cached_tokens: found in the prefix cache when it started.
        started: whether it holds pages.
        published: leading pages whose names the pool knows.
        view: as policies saw it last.
    """

    sequence: Sequence
    arrival_s: float
    deadline_s: float | None = None
    priority: int = 0
    hashes: tuple[bytes, ...] = ()
    usable: tuple[bytes, ...] = ()
    lane: Lane = Lane.SHORT
    cached_tokens: int = 0
    started: bool = False
    published: int = 0
    view: WaitingPrefill | None = None

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to compute."""
        return len(self.sequence.tokens) - self.sequence.n_computed


@dataclass(frozen=True)
class PrefillBatch:
    """Chunks to compute in the next step, or when to ask again.

    Attributes:
        chunks: prompts with the tokens of each to compute.
        wake_s: ask again at this time at the latest; None: when something changes.
        whole: all that the policy asked for is in it, so that its time tells the policy something.
        begun: those of its prompts that begin with it.
    """

    chunks: tuple[tuple[Prompt, int], ...] = ()
    wake_s: float | None = None
    whole: bool = True
    begun: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class LaneLoad:
    """Prompts that wait in a lane, their uncached tokens, and the seconds they are predicted to take."""

    prompts: int
    tokens: int
    seconds: float


class PrefillQueue:
    """Waiting prompts in order of arrival.

    Args:
        policy: chooses batches.
        pool: this worker's pages.
        settings: the policy's, for the boundary of the lanes.
    """

    def __init__(self, policy: PrefillPolicy, pool: PagePool, settings: PrefillSettings) -> None:
        self.policy = policy
        self._pool = pool
        self._settings = settings
        self._prompts: dict[str, Prompt] = {}
        self._owed: set[str] = set()
        self._memory: Any = None
        self._last_batch_s: float | None = None
        self._last_lane: Lane | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, prompt: Prompt, *, front: bool = False) -> None:
        """Queues a prompt; its lane follows from what the prefix cache holds now."""
        sequence, page_tokens = prompt.sequence, self._pool.page_tokens
        # At least one token must be computed, or there would be nothing to sample from.
        usable = (len(sequence.tokens) - 1) // page_tokens
        prompt.hashes = tuple(page_hashes(sequence.tokens, page_tokens, sequence.cache_salt))
        prompt.usable = prompt.hashes[:usable]
        prompt.cached_tokens = self._pool.peek(prompt.usable) * page_tokens
        prompt.lane = lane_of(len(sequence.tokens) - prompt.cached_tokens, self.boundary_tokens)
        if front:
            self._owed.add(sequence.request_id)
            self._prompts = {sequence.request_id: prompt, **self._prompts}
        else:
            self._prompts[sequence.request_id] = prompt

    def remove(self, request_id: str) -> Prompt | None:
        """Takes a prompt out; its pages stay with its sequence."""
        self._owed.discard(request_id)
        return self._prompts.pop(request_id, None)

    @property
    def owes(self) -> bool:
        """Whether an answer that lost its pages waits for others: nobody else may take any before."""
        return bool(self._owed)

    @property
    def boundary_tokens(self) -> int:
        """Longest uncached prompt that goes into the short lane now."""
        return boundary_tokens(self.policy, self._memory, self._settings)

    def waiting(self, lane: Lane, cost: PrefillCost) -> LaneLoad:
        """What waits in a lane, and how long it will take at this cost."""
        views = [self._view_of(prompt) for prompt in self._prompts.values() if prompt.lane is lane]
        tokens = sum(view.uncached_tokens for view in views)
        seconds = sum(cost.prompt_s(view.uncached_tokens, view.cached_tokens) for view in views)
        return LaneLoad(len(views), tokens, seconds)

    def next_batch(self, now_s: float, allowed: Callable[[str], bool] | None = None) -> PrefillBatch:
        """Asks the policy and finds pages; prompts for which there are none wait on.

        When none of those that the policy chose finds pages, it chooses again among prompts that have theirs:
        these would otherwise hold on to them while they wait for the others.

        Args:
            now_s: for the policy.
            allowed: whether a request's prompt may be computed now; None: all may.
        """
        prompts = [each for key, each in self._prompts.items() if allowed is None or allowed(key)]
        memory, last_batch_s = self._memory, self._last_batch_s
        batch = self._choose(now_s, prompts)
        started = [prompt for prompt in prompts if prompt.started]
        if batch.chunks or batch.whole or not started:
            return batch
        self._memory, self._last_batch_s = memory, last_batch_s
        return self._choose(now_s, started)

    def settle(self, batch: PrefillBatch, seconds: float) -> list[Prompt]:
        """Records a computed batch, names its full pages and returns the prompts that are complete."""
        if not batch.chunks:
            # A step of answers alone says nothing about the prompts of the one before.
            return []
        self._last_batch_s = seconds if batch.whole else None
        complete = []
        for prompt, _tokens in batch.chunks:
            self._last_lane = prompt.lane
            self._publish(prompt)
            if prompt.remaining_tokens == 0:
                complete.append(prompt)
                self._prompts.pop(prompt.sequence.request_id, None)
        return complete

    def _choose(self, now_s: float, prompts: list[Prompt]) -> PrefillBatch:
        if not prompts:
            return PrefillBatch()
        waiting = tuple(self._view_of(prompt) for prompt in prompts)
        view = PrefillView(waiting, self._memory, self._last_batch_s, self._last_lane)
        decision = self.policy.decide(now_s, view)
        self._memory = decision.memory
        self._last_batch_s = None
        chunks, begun = [], []
        for chunk in decision.chunks:
            prompt = self._prompts[chunk.request_id]
            if not prompt.started:
                if not self._start(prompt):
                    break
                begun.append(prompt)
            # The cache may hold more than when the policy looked.
            chunks.append((prompt, min(chunk.tokens, prompt.remaining_tokens)))
        whole = len(chunks) == len(decision.chunks)
        return PrefillBatch(tuple(chunks), decision.wake_s, whole, tuple(begun))

    def _view_of(self, prompt: Prompt) -> WaitingPrefill:
        done = prompt.sequence.n_computed if prompt.started else prompt.cached_tokens
        if prompt.view is not None and prompt.view.cached_tokens == done:
            return prompt.view
        prompt.view = WaitingPrefill(
            request_id=prompt.sequence.request_id,
            arrival_s=prompt.arrival_s,
            uncached_tokens=len(prompt.sequence.tokens) - done,
            cached_tokens=done,
            lane=prompt.lane,
            deadline_s=prompt.deadline_s,
            priority=prompt.priority,
        )
        return prompt.view

    def _start(self, prompt: Prompt) -> bool:
        sequence, page_tokens = prompt.sequence, self._pool.page_tokens
        found = self._pool.match(prompt.usable)
        try:
            fresh = self._pool.allocate(-(-len(sequence.tokens) // page_tokens) - len(found))
        except OutOfPages:
            self._pool.release(found)
            return False
        sequence.page_ids = found + fresh
        sequence.n_computed = prompt.cached_tokens = len(found) * page_tokens
        prompt.published = len(found)
        prompt.started = True
        self._owed.discard(sequence.request_id)
        return True

    def _publish(self, prompt: Prompt) -> None:
        full = prompt.sequence.n_computed // self._pool.page_tokens
        for index in range(prompt.published, min(full, len(prompt.hashes))):
            self._pool.publish(prompt.sequence.page_ids[index], prompt.hashes[index])
        prompt.published = max(prompt.published, full)
