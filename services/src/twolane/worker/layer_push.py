"""Sends layers of a prompt's pages while the step still computes the next ones.

The engine's thread only says how far it is; the event loop sends. Worth it from a size on: every push costs
both workers a message, and a short prompt's pages travel faster than their layers are told apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from twolane.engine.engine import Engine
from twolane.engine.sequence import Sequence
from twolane.prefill.queue import PrefillBatch
from twolane.transfer.page_store import PageMemory
from twolane.transfer.sender import Sender


@dataclass(frozen=True, slots=True)
class _Running:
    """A prompt in the running step, and how many of its tokens are computed after it."""

    sequence: Sequence
    tokens: int


class LayerPush:
    """Pushes ahead of the step under way.

    Args:
        engine: reports layers.
        sender: sends them.
        store: knows the sizes.
        min_bytes: least bytes of one push; 0: nothing goes ahead.
        page_tokens: tokens of a page.
    """

    def __init__(
        self, engine: Engine, sender: Sender, store: PageMemory, min_bytes: int, page_tokens: int
    ) -> None:
        self._sender = sender
        self._layer_bytes = store.page_bytes // store.n_layers
        self._n_layers = store.n_layers
        self._min_bytes = min_bytes if engine.watch_layers(self.layer_done) else 0
        self._page_tokens = page_tokens
        self._running: list[_Running] = []
        self._every = 0
        self._step = 0
        self._call: Callable[[int, int], object] = lambda _step, _layers: None

    def begin(self, batch: PrefillBatch) -> None:
        """A step with these chunks is about to run; called on the event loop."""
        self._every = 0
        if self._min_bytes == 0 or not batch.chunks:
            return
        running, pages = [], 0
        for prompt, tokens in batch.chunks:
            sequence = prompt.sequence
            after = sequence.n_computed + tokens
            fresh = after // self._page_tokens - sequence.n_computed // self._page_tokens
            if fresh and self._sender.has_offer(sequence.request_id):
                running.append(_Running(sequence, after))
                pages += fresh
        if not pages:
            return
        every = -(-self._min_bytes // (pages * self._layer_bytes))
        if every < self._n_layers:
            self._running, self._every = running, every
            loop = asyncio.get_running_loop()
            self._call = lambda step, layers: loop.call_soon_threadsafe(self._push, step, layers)

    def layer_done(self, layers: int) -> None:
        """So many layers are in the pages; called by the engine's thread."""
        if self._every and layers % self._every == 0 and layers < self._n_layers:
            self._call(self._step, layers)

    def end(self) -> None:
        """The step is over: what has not gone ahead goes as a whole."""
        self._step += 1
        self._every, self._running = 0, []

    def _push(self, step: int, layers: int) -> None:
        if step != self._step:
            return
        for each in self._running:
            self._sender.advance_layers(each.sequence.request_id, each.sequence.page_ids, each.tokens, layers)
