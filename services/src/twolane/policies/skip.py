"""Whether a short prompt is better computed on its decode worker, without disaggregation.

The router asks once both workers are chosen, the simulator likewise. The answer is a permission that the
cost model gives; nothing ever depends on it being given.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.cost import DecodeCost, PrefillCost


@dataclass(frozen=True, slots=True)
class SkipView:
    """One request and its two workers.

    Attributes:
        uncached_tokens: prompt tokens to compute at the prefill worker.
        cached_tokens: prompt tokens whose KV the prefill worker has.
        decode_cached_tokens: prompt tokens whose KV the decode worker has.
        boundary_tokens: boundary of the lanes.
        prefill_wait_s: predicted wait at the prefill worker.
        transfer_s: predicted seconds for the pages to reach the decode worker.
        decode_rows: rows that decode there.
        decode_held_tokens: tokens they hold.
        tpot_limit_s: seconds per token that running answers may take.
    """

    uncached_tokens: int
    cached_tokens: int
    decode_cached_tokens: int
    boundary_tokens: int
    prefill_wait_s: float
    transfer_s: float
    decode_rows: int
    decode_held_tokens: int
    tpot_limit_s: float


def skip_pays(view: SkipView, prefill: PrefillCost, decode: DecodeCost) -> bool:
    """Whether the first token and the second come sooner, and no running answer is held up too long.

    The prompt must be short at the decode worker too, where its cached prefix may differ. A step that
    carries the prompt takes a decode step and the prompt's own time together; that must stay within the
    limit per token.
    """
    there_tokens = view.uncached_tokens + view.cached_tokens - view.decode_cached_tokens
    if there_tokens > view.boundary_tokens:
        return False
    step_s = decode.step_s(view.decode_held_tokens, view.decode_rows) if view.decode_rows else 0.0
    compute_s = prefill.prompt_s(there_tokens, view.decode_cached_tokens)
    if view.decode_rows and step_s + compute_s > view.tpot_limit_s:
        return False
    # A running step must end before the prompt starts: half a step on average.
    direct_s = 0.5 * step_s + compute_s
    usual_s = view.prefill_wait_s + prefill.prompt_s(view.uncached_tokens, view.cached_tokens)
    return direct_s <= usual_s and direct_s < usual_s + view.transfer_s
