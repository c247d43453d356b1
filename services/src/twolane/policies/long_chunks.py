"""How much of the long lane `laps` computes in one step.

Large chunks save steps, small ones let short prompts in sooner; the cost of a step and the rate of short
arrivals decide between them.
"""

from __future__ import annotations

import math

from twolane.policies.laps_moment import Moment
from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import Chunk
from twolane.policies.settings import PrefillSettings

# A chunk takes at least this multiple of what one more heavy step costs.
MIN_EFFICIENCY = 4.0


def long_batch(settings: PrefillSettings, moment: Moment, slack_s: float) -> tuple[Chunk, ...]:
    """The next chunk of the first long prompt; if that ends it, whole others that cost it little.

    A prompt is cut into equal chunks, so that none ends in a small step. A prompt that joins delays the
    first by its own time and saves the queue the constant part of a step; where capacity is short the batch
    is filled.

    Args:
        settings: the policy's.
        moment: with at least one long prompt, in the order to run them.
        slack_s: seconds for which the short prompts that wait can still wait.
    """
    ordered, cost = moment.longs, moment.cost
    first = ordered[0]
    # Long prompts alone never show what light steps cost.
    if not (settings.adaptive_chunk and cost.fit.heavy.samples >= settings.fit_min_samples):
        return pack(ordered, BatchLimits(settings.long_chunk_tokens))
    longest_s = _chunk_s(settings, moment, slack_s)
    most = min(settings.long_chunk_max_tokens, settings.max_batch_tokens)
    room = max(settings.long_chunk_min_tokens, cost.tokens_within(longest_s, first.cached_tokens))
    room = min(room, most)
    if first.uncached_tokens > room:
        pieces = math.ceil(first.uncached_tokens / room)
        return (Chunk(first.request_id, math.ceil(first.uncached_tokens / pieces)),)
    fill_s = longest_s - cost.constant_s if moment.is_tight else len(ordered) * cost.heavy_constant_s
    chosen, tokens, batch_s = 0, 0, 0.0
    for prompt in ordered:
        tokens += prompt.uncached_tokens
        batch_s += cost.marginal_s(prompt.uncached_tokens, prompt.cached_tokens)
        if chosen and (batch_s > fill_s or tokens > most):
            break
        chosen += 1
    return pack(ordered[:chosen], BatchLimits(most))


def _chunk_s(settings: PrefillSettings, moment: Moment, slack_s: float) -> float:
    """Seconds of the next chunk: as large as short prompts allow where capacity is short."""
    longest_s = min(settings.long_chunk_target_s, slack_s)
    if not moment.is_tight:
        longest_s = min(longest_s, _best_s(settings, moment))
    return max(longest_s, settings.long_chunk_least_s, MIN_EFFICIENCY * moment.cost.heavy_constant_s)


def _best_s(settings: PrefillSettings, moment: Moment) -> float:
    """Seconds of a chunk at which both lanes together lose least.

    A chunk of T seconds holds up the rate·T short prompts that arrive in it by T/2 each; a smaller
    one makes the whole long queue pay for a step more often. With c the cost of a step the sum is least
    at T = √(2 · queue · c / (rate · weight)). When short prompts come often, a short batch cuts in after
    each chunk and c is its constant part; else c is what one more heavy step costs alone.
    """
    rate = moment.memory.arrivals.rate_per_s(moment.now_s) * settings.short_weight
    if rate <= 0.0:
        return math.inf
    queue = len(moment.longs)
    cuts_s, alone_s = moment.cost.constant_s, moment.cost.heavy_constant_s
    full_s = math.sqrt(2.0 * queue * cuts_s / rate)
    often = max(0.0, min(1.0, rate / settings.short_weight * full_s - 0.5))
    return math.sqrt(2.0 * queue * (alone_s + often * (cuts_s - alone_s)) / rate)
