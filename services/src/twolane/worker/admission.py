"""What a worker refuses at once, before a request costs anything."""

from __future__ import annotations

from dataclasses import dataclass

from twolane.core.errors import ContextTooLong, InvalidRequest
from twolane.core.request import Phase
from twolane.worker.request import Request


@dataclass(frozen=True)
class Limits:
    """What a request may ask for here.

    Attributes:
        vocab_size: token ids are below it.
        max_model_len: prompt plus answer at most, in tokens.
        max_waiting: requests that may wait for prefill or for pages.
    """

    vocab_size: int
    max_model_len: int
    max_waiting: int

    def check(self, request: Request) -> None:
        """Refuses a request that could never be served here.

        Raises:
            InvalidRequest: no tokens, unknown tokens, or a half without its peer.
            ContextTooLong: no room for one token of an answer.
        """
        tokens = request.sequence.tokens
        if not tokens or max(tokens) >= self.vocab_size:
            raise InvalidRequest(f"token ids must be below {self.vocab_size}, at least one", param="prompt")
        if len(tokens) >= self.max_model_len:
            most = self.max_model_len
            raise ContextTooLong(f"the prompt has {len(tokens)} tokens; with one to answer {most} fit")
        if request.phase is not Phase.BOTH and not request.peer.address:
            raise InvalidRequest("a request that is done by two workers must name its peer", param="peer")
