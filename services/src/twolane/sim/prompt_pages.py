"""Pages of prompts on a simulated worker, from their first chunk until they leave or become an answer's."""

from __future__ import annotations


class PromptPages:
    """Who has how many tokens of pages.

    Attributes:
        taken_tokens: of all prompts.
        pinned_tokens: of completed prompts that wait for their transfer.
    """

    __slots__ = ("_pinned", "_taken", "pinned_tokens", "taken_tokens")

    def __init__(self) -> None:
        self.taken_tokens = self.pinned_tokens = 0
        self._taken: dict[str, int] = {}
        self._pinned: set[str] = set()

    def take(self, name: str, tokens: int) -> None:
        """A prompt begins."""
        self._taken[name] = tokens
        self.taken_tokens += tokens

    def pin(self, name: str) -> None:
        """It is complete and waits."""
        self._pinned.add(name)
        self.pinned_tokens += self._taken.get(name, 0)

    def free(self, name: str) -> int:
        """It is gone; the tokens it had."""
        tokens = self._taken.pop(name, 0)
        self.taken_tokens -= tokens
        if name in self._pinned:
            self._pinned.remove(name)
            self.pinned_tokens -= tokens
        return tokens

    def clear(self) -> None:
        """All are gone."""
        self._taken.clear()
        self._pinned.clear()
        self.taken_tokens = self.pinned_tokens = 0
