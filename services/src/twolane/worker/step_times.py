"""Times steps of an engine over shapes: prompts with and without history, batches, answers, both at once.

`twolane profile` calls it with a loaded engine; what comes out is plain numbers, which the simulator's
profile is fitted to.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from twolane.core.request import SamplingParams
from twolane.engine import sequence as engine_rows
from twolane.engine.engine import Engine

Say = Callable[[int, int], None]

PROMPTS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
HISTORIES = (512, 2048, 6144, 16384)
CHUNKS = (16, 64, 256, 1024)
BATCHES = ((2, 16), (4, 16), (8, 16), (16, 16), (32, 16), (4, 64), (16, 64), (4, 256), (8, 256))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (16, 128, 512, 2048, 6144)
MIXED = ((4, 256, 128), (16, 256, 256), (32, 512, 512))


@dataclass(frozen=True, slots=True)
class Shape:
    """One step: `prompts` of `new` tokens behind `cached` ones, and `rows` answers of `held` tokens each."""

    prompts: int = 0
    new: int = 0
    cached: int = 0
    rows: int = 0
    held: int = 0

    @property
    def kind(self) -> str:
        """prefill, decode or mixed."""
        if not self.rows:
            return "prefill"
        return "mixed" if self.prompts else "decode"

    @property
    def pool_tokens(self) -> int:
        """Tokens that need pages."""
        return self.prompts * (self.new + self.cached) + self.rows * (self.held + 1)


@dataclass(frozen=True, slots=True)
class StepTime:
    """A shape with its median seconds, elapsed and of the processor, and the spread of the elapsed ones."""

    shape: Shape
    seconds: float
    processor_s: float
    low_s: float
    high_s: float


def shapes_for(max_len: int, pool_tokens: int, max_rows: int) -> list[Shape]:
    """All shapes that fit a model's length, the pool, and the largest batch of answers."""
    found = [Shape(1, tokens) for tokens in PROMPTS]
    found += [Shape(1, new, cached) for cached in HISTORIES for new in CHUNKS]
    found += [Shape(count, new) for count, new in BATCHES]
    found += [Shape(rows=rows, held=held) for rows in ROWS for held in CONTEXTS if rows <= max_rows]
    found += [Shape(1, new, 0, rows, held) for rows, held, new in MIXED]
    return [
        shape
        for shape in found
        if shape.new + shape.cached < max_len
        and shape.held + 1 < max_len
        and shape.pool_tokens <= pool_tokens
    ]


def time_steps(
    engine: Engine, shapes: Sequence[Shape], rounds: int, budget_s: float, say: Say | None = None
) -> list[StepTime]:
    """Times every shape once a round, in an order of its own, after a round that only warms up.

    Args:
        engine: loaded; its pool must be unused.
        shapes: what to time.
        rounds: measured rounds, at most; at least one is made.
        budget_s: no further round begins later than this.
        say: called with the steps done and the steps in all.
    """
    taken: dict[Shape, list[tuple[float, float]]] = {shape: [] for shape in shapes}
    order = list(shapes)
    chance = random.Random(0)
    began_s, done = time.perf_counter(), 0
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() - began_s > budget_s:
            break
        chance.shuffle(order)
        for shape in order:
            times = _time(engine, shape)
            if number:
                taken[shape].append(times)
            done += 1
            if say is not None:
                say(done, (rounds + 1) * len(order))
    return [_summary(shape, times) for shape, times in taken.items()]


def _summary(shape: Shape, times: Sequence[tuple[float, float]]) -> StepTime:
    elapsed = sorted(seconds for seconds, _ in times)
    processor_s = statistics.median(seconds for _, seconds in times)
    return StepTime(shape, statistics.median(elapsed), processor_s, elapsed[0], elapsed[-1])


def _time(engine: Engine, shape: Shape) -> tuple[float, float]:
    """Seconds of one step, elapsed and of the processor."""
    sequences: list[engine_rows.Sequence] = []
    answers = [_row(engine, shape.held, 1, sequences) for _ in range(shape.rows)]
    if answers:
        # Engines may keep growing answers close at hand: the second step is the usual one.
        _advance(answers, engine)
    rows = [engine_rows.Row(row.sequence, 1, True) for row in answers]
    rows += [_row(engine, shape.cached, shape.new, sequences) for _ in range(shape.prompts)]
    if engine.kv.is_cuda:
        torch.cuda.synchronize(engine.kv.device)
    began_cpu_s, began_s = time.process_time(), time.perf_counter()
    engine.step(rows)
    seconds = time.perf_counter() - began_s
    processor_s = time.process_time() - began_cpu_s
    for sequence in sequences:
        engine.pool.release(sequence.page_ids)
    return seconds, processor_s


def _row(engine: Engine, computed: int, new: int, sequences: list[engine_rows.Sequence]) -> engine_rows.Row:
    """A sequence whose first tokens count as computed; what its pages hold does not matter here."""
    count = computed + new
    # One more than the step needs: a decode row takes two steps.
    pages = engine.pool.allocate(-(-(count + 1) // engine.fingerprint.page_tokens))
    greedy = SamplingParams(max_tokens=2, temperature=0.0)
    tokens = [position % (engine.spec.vocab_size - 1) + 1 for position in range(count)]
    name = f"profile-{len(sequences)}"
    sequence = engine_rows.Sequence(name, tokens, count, greedy, n_computed=computed, page_ids=pages)
    sequences.append(sequence)
    return engine_rows.Row(sequence, new, True)


def _advance(rows: Sequence[engine_rows.Row], engine: Engine) -> None:
    for row, drawn in zip(rows, engine.step(rows), strict=True):
        assert drawn is not None
        row.sequence.tokens.append(drawn.token_id)


def copy_bytes_per_s(engine: Engine, least_bytes: int = 64 << 20) -> float:
    """Bytes per second at which pages are copied within the device's memory: a bound of local transfers."""
    kv = engine.kv
    page_bytes = kv[0].numel() * kv.element_size()
    half = kv.shape[0] // 2
    if half < 1:
        return 0.0
    rounds = max(3, -(-least_bytes // max(1, half * page_bytes)))
    taken = []
    for _ in range(rounds):
        if kv.is_cuda:
            torch.cuda.synchronize(kv.device)
        began_s = time.perf_counter()
        kv[half : 2 * half].copy_(kv[:half])
        if kv.is_cuda:
            torch.cuda.synchronize(kv.device)
        taken.append(time.perf_counter() - began_s)
    return half * page_bytes / statistics.median(taken)
