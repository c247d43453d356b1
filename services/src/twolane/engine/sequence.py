"""The values that pass between a worker and its engine: a request's state, a row of a step, a drawn token."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field

from twolane.core.request import SamplingParams, TokenLogprob


@dataclass(slots=True)
class TokenCounts:
    """How often each token occurs, kept up to date by the sampler as a sequence grows.

    Attributes:
        n_counted: tokens of the sequence already counted.
        prompt: the distinct tokens of the prompt.
        generated: occurrences among generated tokens.
    """

    n_counted: int = 0
    prompt: set[int] = field(default_factory=set)
    generated: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's state in the engine; the worker owns it, the engine reads it and advances n_computed.

    Attributes:
        request_id: for messages.
        tokens: ids of prompt and answer so far, an array("I") or a list; the worker appends drawn tokens.
        n_prompt: tokens of the prompt.
        sampling: how tokens are drawn.
        n_computed: tokens whose keys and values are in pages.
        page_ids: pages in order of position; must cover the tokens of a step before the step.
        cache_salt: keeps this request's prefix names apart from those of other salts.
        counts: the sampler's own; None until a penalty needs it.
    """

    request_id: str
    tokens: MutableSequence[int]
    n_prompt: int
    sampling: SamplingParams
    n_computed: int = 0
    page_ids: list[int] = field(default_factory=list)
    cache_salt: str = ""
    counts: TokenCounts | None = field(default=None, repr=False)

    @property
    def n_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.n_prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step.

    Attributes:
        sequence: whose tokens[n_computed : n_computed + n_tokens] are computed.
        n_tokens: 1 for a decode row, more for a chunk of prefill.
        sample: draw the token that follows; the chunk must then reach the end of tokens.
    """

    sequence: Sequence
    n_tokens: int
    sample: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """A drawn token, with its log probability if the request asked for it."""

    token_id: int
    logprob: TokenLogprob | None = None
