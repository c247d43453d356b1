"""Clients that each send a prompt, wait for its first token and send the next, on one engine in one process.

Used by `prefill_gpu.py`. Prompts have lengths like LMSYS-Chat; queue, policy and engine are the worker's own,
network, tokenizer and event loop are left out.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from array import array
from dataclasses import dataclass, field

import numpy as np
import torch

from twolane.core.request import SamplingParams
from twolane.engine.engine import Engine
from twolane.engine.sequence import Row, Sequence
from twolane.policies import registry
from twolane.policies.settings import PrefillSettings
from twolane.prefill.queue import PrefillBatch, PrefillQueue, Prompt

GREEDY = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
# (standard normal deviate, tokens) at P50, P90 and P99 of LMSYS-Chat prompts; lognormal between them.
_LENGTHS = ((0.0, 17.0), (1.2815515655, 128.0), (2.3263478740, 881.0))
# A prompt of one token would be computed as a decode row.
_SHORTEST = 2
# Turns of a conversation when prefixes are reused.
_TURNS = 4
# A policy that asks for nothing for so long while prompts wait has stalled.
_STALL_S = 5.0
_SPIN_S = 2e-4


def prompt_tokens(rng: random.Random, longest: int) -> int:
    """A length drawn from the distribution above, at most `longest`."""
    deviate = rng.gauss(0.0, 1.0)
    below, above = _LENGTHS[0:2] if deviate < _LENGTHS[1][0] else _LENGTHS[1:3]
    slope = math.log(above[1] / below[1]) / (above[0] - below[0])
    return min(max(_SHORTEST, round(below[1] * math.exp(slope * (deviate - below[0])))), longest)


def random_tokens(rng: random.Random, count: int, vocab: int) -> array[int]:
    """Token ids, drawn in bulk: it happens between the steps that are timed."""
    drawn = np.frombuffer(rng.randbytes(4 * count), dtype=np.uint32) % np.uint32(vocab)
    return array("I", drawn.tobytes())


@dataclass
class Client:
    """One client; with `reuse` a prompt repeats the conversation so far and adds to it."""

    rng: random.Random
    vocab: int
    longest: int
    reuse: bool
    history: array[int] = field(default_factory=lambda: array("I"))
    turn: int = 0

    def prompt(self) -> array[int]:
        """The tokens of the next prompt."""
        new = prompt_tokens(self.rng, self.longest)
        if not self.reuse or self.turn == _TURNS or len(self.history) + new > self.longest:
            self.history, self.turn = array("I"), 0
        self.history, self.turn = self.history + random_tokens(self.rng, new, self.vocab), self.turn + 1
        return array("I", self.history)


@dataclass(slots=True)
class Measured:
    """Times to first token and counts of one policy at one number of clients.

    Attributes:
        ttft_s: of prompts that were sent and answered while it measured.
        computed_tokens: prompt tokens computed; those found in the prefix cache don't count.
        cached_tokens: those found.
        elapsed_s: time measured.
        steps: engine steps.
    """

    ttft_s: list[float] = field(default_factory=list)
    computed_tokens: int = 0
    cached_tokens: int = 0
    elapsed_s: float = 0.0
    steps: int = 0

    def quantile_ms(self, share: float) -> float | None:
        """A quantile of the times to first token, in milliseconds; None without any."""
        if not self.ttft_s:
            return None
        ordered = sorted(self.ttft_s)
        if share == 0.5:
            return 1e3 * statistics.median(ordered)
        return 1e3 * ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one step did."""

    ended_s: float
    complete: list[Prompt]
    computed_tokens: int
    cached_tokens: int


class ClosedLoop:
    """One policy with its queue, which keeps what the policy learned from one run to the next."""

    def __init__(self, engine: Engine, policy: str, *, others_only: bool = False) -> None:
        """Prompts take pages from the engine's pool and give them back when they are answered.

        Workers tell a step how many prompts are queued, its own included; with `others_only` those are not
        counted, so that large batches take graphs too.
        """
        settings = PrefillSettings()
        self._engine = engine
        self._queue = PrefillQueue(registry.by_name(policy, settings), engine.pool, settings)
        self._clients: dict[str, Client] = {}
        self._n_sent = 0
        self._others_only = others_only

    def run(self, clients: list[Client], seconds: float, result: Measured) -> None:
        """Serves the clients for so long, one answer at least, and adds to `result`.

        Every client's first prompt is left out, since they all come at once.
        """
        now_s = time.perf_counter()
        for client in clients:
            self._send(client, now_s)
        began_s = ended_s = self._turn(sending=True).ended_s
        n_before = len(result.ttft_s)
        while ended_s < began_s + seconds or len(result.ttft_s) == n_before:
            turn = self._turn(sending=True)
            ended_s = turn.ended_s
            result.steps += 1
            result.computed_tokens += turn.computed_tokens
            result.cached_tokens += turn.cached_tokens
            result.ttft_s += [ended_s - p.arrival_s for p in turn.complete if p.arrival_s >= began_s]
        result.elapsed_s += ended_s - began_s
        while len(self._queue):
            self._turn(sending=False)

    def _turn(self, *, sending: bool) -> _Turn:
        """One step; with `sending`, clients that got their token send the next prompt."""
        batch = self._wait_for_batch()
        begun = [prompt for prompt, _ in batch.chunks if prompt.sequence.n_computed == prompt.cached_tokens]
        rows = [
            Row(prompt.sequence, tokens, sample=tokens == prompt.remaining_tokens)
            for prompt, tokens in batch.chunks
        ]
        queued = len(self._queue) - (len(rows) if self._others_only else 0)
        began_s = time.perf_counter()
        self._engine.step(rows, queue_depth=queued)
        if self._engine.kv.is_cuda and not any(row.sample for row in rows):
            # Without a token to wait for, the step would look as short as its launches.
            torch.cuda.synchronize()
        now_s = time.perf_counter()
        complete = self._queue.settle(batch, now_s - began_s)
        for prompt in complete:
            self._engine.pool.release(prompt.sequence.page_ids)
            client = self._clients.pop(prompt.sequence.request_id)
            if sending:
                self._send(client, now_s)
        computed = sum(row.n_tokens for row in rows)
        return _Turn(now_s, complete, computed, sum(prompt.cached_tokens for prompt in begun))

    def _send(self, client: Client, now_s: float) -> None:
        self._n_sent += 1
        tokens = client.prompt()
        sequence = Sequence(str(self._n_sent), tokens, len(tokens), GREEDY)
        self._clients[sequence.request_id] = client
        self._queue.add(Prompt(sequence, arrival_s=now_s))

    def _wait_for_batch(self) -> PrefillBatch:
        """The next batch; sleeps as long as the policy says, since no client sends anything meanwhile."""
        began_s = now_s = time.perf_counter()
        while not (batch := self._queue.next_batch(now_s)).chunks:
            if now_s - began_s > _STALL_S or batch.wake_s is None:
                raise RuntimeError(f"{self._queue.policy.name} runs nothing though {len(self._queue)} wait")
            time.sleep(max(0.0, batch.wake_s - now_s - _SPIN_S))
            now_s = time.perf_counter()
        return batch
