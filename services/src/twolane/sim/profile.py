"""How long steps take on a simulated device and how much it holds: the one place with hardware numbers.

The simulator charges these times as the truth; policies never see them, only measured step times. Profiles
are files (profile_file.py): built-in ones, and those that `twolane profile` measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twolane.policies.cost import Work


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """A model on a device, as a roofline: a step takes its overhead and the slower of memory and compute.

    Attributes:
        overhead_s: launch, sampling and scheduling of a step with prompts.
        weights_s: reading all weights once.
        token_s: compute per token, attention aside.
        attention_s: compute of attention per unit of L(L+2H), all layers.
        cached_read_s: reading the KV of one cached token in prefill.
        decode_read_s: reading the KV of one token in decode.
        kv_bytes_per_token: bytes of KV per token over all layers.
        capacity_tokens: tokens whose KV fits beside the weights.
        transfer_bytes_per_s: bandwidth of the link between two workers, per worker and direction.
        transfer_latency_s: seconds from the last byte sent to the row being ready.
        prompt_s: what each prompt of a step costs as such.
        decode_overhead_s: as overhead_s, in a step of answers alone; None: the same.
        decode_weights_s: as weights_s, likewise.
        decode_token_s: as token_s, per answer of a step; likewise.
        between_steps_s: seconds of the worker's own loop from the end of a step to the begin of the next.
        arrival_s: seconds from a client's sending to the prompt's place in a worker's queue: router and RPC.
        reply_s: seconds from the end of a step to its token at the client.
        step_spread: sigma (lognormal) of steps with prompts around these numbers; None: the simulation says.
        way_spread: sigma of arrival_s and reply_s together, from request to request.
        graph_tokens: steps with prompts of up to so many tokens run as captured graphs; 0: none.
        graph_overhead_s: what takes the place of overhead_s then.
    """

    overhead_s: float
    weights_s: float
    token_s: float
    attention_s: float
    cached_read_s: float
    decode_read_s: float
    kv_bytes_per_token: int
    capacity_tokens: int
    transfer_bytes_per_s: float
    transfer_latency_s: float
    prompt_s: float = 0.0
    decode_overhead_s: float | None = None
    decode_weights_s: float | None = None
    decode_token_s: float | None = None
    between_steps_s: float = 0.0
    arrival_s: float = 0.0
    reply_s: float = 0.0
    step_spread: float | None = None
    way_spread: float = 0.0
    graph_tokens: int = 0
    graph_overhead_s: float = 0.0

    def prefill_s(self, work: Iterable[Work]) -> float:
        """Seconds of a step of prompts of (new, cached) tokens."""
        return self.mixed_s(work, 0, 0)

    def mixed_s(self, work: Iterable[Work], rows: int, held_tokens: int) -> float:
        """Seconds of a step that computes prompts and gives a token to each of `rows` answers.

        All tokens share one reading of the weights; answers of `held_tokens` together read those.
        """
        new_tokens = cached_tokens = prompts = 0
        pairs = 0
        for new, cached in work:
            prompts += 1
            new_tokens += new
            cached_tokens += cached
            pairs += new * (new + 2 * cached)
        if not prompts:
            return self.decode_constant_s(rows) + self.decode_read_s * held_tokens
        # Padding to the graph's size costs little: small steps wait for the weights.
        captured = new_tokens + rows <= self.graph_tokens
        seconds = (
            (self.graph_overhead_s if captured else self.overhead_s)
            + max(self.weights_s, self.token_s * (new_tokens + rows))
            + self.prompt_s * prompts
            + self.cached_read_s * cached_tokens
            + self.attention_s * pairs
        )
        if rows:
            row_s = self.token_s if self.decode_token_s is None else self.decode_token_s
            seconds += self.decode_read_s * held_tokens + max(0.0, row_s - self.token_s) * rows
        return seconds + self.between_steps_s

    def decode_constant_s(self, rows: int) -> float:
        """Seconds of a decode step but for its KV reads."""
        overhead_s = self.overhead_s if self.decode_overhead_s is None else self.decode_overhead_s
        weights_s = self.weights_s if self.decode_weights_s is None else self.decode_weights_s
        row_s = self.token_s if self.decode_token_s is None else self.decode_token_s
        return overhead_s + max(weights_s, row_s * rows) + self.between_steps_s

    def transfer_s(self, tokens: int) -> float:
        """Seconds that the KV of these tokens occupies a link."""
        return tokens * self.kv_bytes_per_token / self.transfer_bytes_per_s
