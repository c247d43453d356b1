"""The text of one answer as its tokens arrive: decoding, stop strings, log probabilities beside it.

Fed by `answer.py`. A log probability comes out together with the text of its token, so that tokens of
a stop string, whose text never comes out, don't either.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer as FastTokenizer

from twolane.router.detokenizer import Detokenizer
from twolane.router.stop import StopMatcher
from twolane.v1 import types_pb2 as pb

# Where the token's text begins in the answer, and the worker's report.
PlacedLogprob = tuple[int, pb.TokenLogprob]


class AnswerText:
    """Turns one answer's tokens into text that may be shown.

    Attributes:
        n_tokens: tokens taken; none after the one that completes a stop string.
        stopped: a stop string is complete: nothing more comes.
    """

    __slots__ = (
        "_decoded",
        "_detokenizer",
        "_given",
        "_matcher",
        "_min_tokens",
        "_waiting",
        "n_tokens",
        "stopped",
    )

    def __init__(
        self, fast: FastTokenizer, stops: Sequence[str], min_tokens: int, context: Sequence[int] = ()
    ) -> None:
        """`context` is the prompt that the text goes on from; no stop string counts before `min_tokens`."""
        self._detokenizer = Detokenizer(fast, context)
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._decoded = 0
        self._given = 0
        self._waiting: list[PlacedLogprob] = []
        self.n_tokens = 0
        self.stopped = False

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[pb.TokenLogprob] = ()) -> str:
        """Text that may be shown now."""
        if self._matcher is None and not logprobs and len(token_ids) == 1:
            # What nearly every event is.
            self.n_tokens += 1
            return self._detokenizer.feed(token_ids[0])
        shown = ""
        for place, token_id in enumerate(token_ids):
            if logprobs:
                self._waiting.append((self._decoded, logprobs[place]))
            self.n_tokens += 1
            text = self._detokenizer.feed(token_id)
            if text:
                shown += self._match(text)
                if self.stopped:
                    break
        self._given += len(shown)
        return shown

    def finish(self) -> str:
        """What was held back, at the answer's end; "" after a stop string."""
        if self.stopped:
            return ""
        shown = self._match(self._detokenizer.finish())
        if self._matcher is not None and not self.stopped:
            shown += self._matcher.finish()
        self._given += len(shown)
        return shown

    def take_logprobs(self, *, ended: bool) -> list[PlacedLogprob]:
        """Log probabilities of tokens whose text came out, in order; all that count once it has ended."""
        if ended and not self.stopped:
            taken, self._waiting = self._waiting, []
            return taken
        count = 0
        while count < len(self._waiting) and self._waiting[count][0] < self._given:
            count += 1
        taken = self._waiting[:count]
        del self._waiting[:count]
        return taken

    def _match(self, text: str) -> str:
        self._decoded += len(text)
        if self._matcher is None or self.n_tokens < self._min_tokens:
            return text
        shown = self._matcher.feed(text)
        self.stopped = self._matcher.matched is not None
        return shown
