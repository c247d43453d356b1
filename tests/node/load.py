"""Clients of the product as an application has them: `openai` clients that stream answers, one after another.

Nothing is retried, so that whatever goes wrong in the cluster is seen. The answers are greedy, so each
must be the same text whichever pods computed it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import openai

REQUEST_TIMEOUT_S = 200.0
PROMPTS = (
    "Tell me about the sea.",
    "Why is the sky blue?",
    "Write a story about a fox and a crow.",
    "What is a page?",
)
TOKENS = 24


@dataclass
class Answered:
    """What came of the requests of a load.

    Attributes:
        texts: answers by prompt.
        failures: what went wrong, with the second of the load in which the request began.
        slowest_s: longest time a request took.
    """

    texts: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    count: int = 0
    slowest_s: float = 0.0


def usual_prompt(turn: int) -> str:
    """A few short ones in turn."""
    return PROMPTS[turn % len(PROMPTS)]


class Load:
    """Some clients that ask again and again while the `with` block runs."""

    def __init__(
        self, url: str, model: str, clients: int = 3, prompts: Callable[[int], str] = usual_prompt
    ) -> None:
        """`prompts`: the prompt of a turn; clients begin at different ones."""
        self.seen = Answered()
        self._prompts = prompts
        self._url, self._model = url, model
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,), name=f"client-{number}", daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # After a failure nobody waits for answers that may never come.
        for thread in self._threads:
            thread.join(1.0 if kind else REQUEST_TIMEOUT_S + 10)

    def wait_for(self, more: int, timeout_s: float = 60.0) -> None:
        """Returns once so many more requests have been answered.

        Raises:
            AssertionError: they are not in time.
        """
        wanted, deadline = self.seen.count + more, time.monotonic() + timeout_s
        while self.seen.count < wanted:
            assert time.monotonic() < deadline, f"{self.seen.count} of {wanted}: {self.seen.failures}"
            time.sleep(0.1)

    def expect_no_failure(self) -> None:
        """Raises AssertionError unless every request was answered, and always alike."""
        assert not self.seen.failures, f"{len(self.seen.failures)} of {self.seen.count}: {self.seen.failures}"
        assert self.seen.count
        differing = {prompt: texts for prompt, texts in self.seen.texts.items() if len(texts) > 1}
        assert not differing

    def _ask_on(self, number: int) -> None:
        client = openai.OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=REQUEST_TIMEOUT_S)
        turn = number
        with client:
            while not self._over.is_set():
                self._ask(client, self._prompts(turn))
                turn += 1

    def _ask(self, client: openai.OpenAI, prompt: str) -> None:
        began = time.monotonic()
        try:
            text = stream(client, self._model, prompt)
        except (openai.OpenAIError, AssertionError) as error:
            with self._lock:
                cause = repr(error.__cause__) if error.__cause__ else ""
                self.seen.failures.append(f"at {began - self._began:.1f} s: {error!r} {cause}")
            time.sleep(0.2)
            return
        with self._lock:
            self.seen.count += 1
            self.seen.texts.setdefault(prompt, set()).add(text)
            self.seen.slowest_s = max(self.seen.slowest_s, time.monotonic() - began)


def stream(client: openai.OpenAI, model: str, prompt: str, tokens: int = TOKENS) -> str:
    """Streams one greedy answer and returns its text.

    Raises:
        openai.OpenAIError: the request failed.
        AssertionError: the stream ended without saying why.
    """
    pieces, reason = [], None
    messages = [{"role": "user", "content": prompt}]
    for chunk in client.chat.completions.create(
        model=model, messages=messages, stream=True, max_tokens=tokens, temperature=0
    ):
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
    assert reason in ("stop", "length"), f"the stream ended with finish_reason {reason!r}"
    return "".join(pieces)
