"""`twolane bench serve`: plans a run, replays it, prints and saves what clients saw.

The exit status is 0 if at least one request was answered, 130 if the run was stopped by Ctrl-C; what was
measured is saved either way.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import orjson
import uvloop
from rich.console import Console

from twolane.bench.client import BenchClient, PlannedRequest, request_body
from twolane.bench.config import BenchConfig, load_of
from twolane.bench.machine import machine_facts
from twolane.bench.plot import write_plot
from twolane.bench.prompts import PromptMaker, prompt_maker
from twolane.bench.replay import Counts, Replay
from twolane.bench.report import RunResult, as_json, class_table, footnotes
from twolane.core.clock import Clock
from twolane.core.errors import ConfigError, Unavailable
from twolane.workload.latency import Outcome
from twolane.workload.traces import TraceRequest

WARMUP_TOKENS = (32, 4)
TERMINAL_EVERY_S = 0.2
PLAIN_EVERY_S = 10.0
STATUS_INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Runs one replay; returns the exit status."""
    config = BenchConfig.from_args(argv)
    load, left_out = load_of(config)
    maker = prompt_maker(config.prompts, config.model_dir, config.seed)
    folder = output_folder(config)
    result = uvloop.run(measure(config, load, left_out, maker))
    if not result.samples:
        return STATUS_INTERRUPTED
    save(result, folder, Console())
    if result.interrupted:
        return STATUS_INTERRUPTED
    return 0 if any(sample.outcome is Outcome.DONE for sample in result.samples) else 1


async def measure(
    config: BenchConfig, load: list[TraceRequest], left_out: int, maker: PromptMaker
) -> RunResult:
    """Warms the server up, replays the load, returns what was measured.

    Raises:
        Unavailable: nothing answers there, or a warm-up request failed.
        ConfigError: the address serves no model.
    """
    key = config.api_key.get_secret_value() if config.api_key else ""
    progress = ProgressLine(sys.stderr, time.monotonic)
    async with BenchClient(config.url, key, config.request_timeout_s) as client:
        model = config.model or await client.first_model()
        await _warm_up(client, config, model, maker)
        plan = plan_of(config, model, load, maker)
        start_s = time.monotonic()
        replay = Replay(client.send, time.monotonic, asyncio.sleep, progress.show)
        samples = await replay.run(plan, grace_s=config.request_timeout_s + 5.0)
        elapsed_s = time.monotonic() - start_s
    progress.end()
    settings = _settings(config, model, maker)
    return RunResult(
        settings, samples, left_out, elapsed_s, replay.interrupted, slo=config.slo, machine=machine_facts()
    )


def plan_of(
    config: BenchConfig, model: str, load: list[TraceRequest], maker: PromptMaker
) -> list[PlannedRequest]:
    """Bodies are made before the run: making long prompts in between would delay arrivals."""
    plan = []
    for index, request in enumerate(load):
        shared = request.cached_tokens if config.reuse_prefixes else 0
        prompt = maker.make(index, request.input_tokens, shared)
        body = request_body(model, prompt, request.output_tokens, ignore_eos=config.ignore_eos)
        length_class = config.length_class(request)
        plan.append(PlannedRequest(index, request.arrival_s, length_class, request.input_tokens, body))
    return plan


async def _warm_up(client: BenchClient, config: BenchConfig, model: str, maker: PromptMaker) -> None:
    tokens, answer_tokens = WARMUP_TOKENS
    for number in range(config.warmup):
        prompt = maker.make(2**31 + number, tokens, 0)
        body = request_body(model, prompt, answer_tokens, ignore_eos=config.ignore_eos)
        sample = await client.send(PlannedRequest(number, 0.0, "warm-up", tokens, body), time.monotonic())
        if sample.outcome is not Outcome.DONE:
            raise Unavailable(
                f"a warm-up request to {client.url} failed ({sample.error_code}); "
                "if the server refuses the field ignore_eos, give --no-ignore-eos"
            )


class ProgressLine:
    """Says how far the run is: one line that changes on a terminal, now and then a line elsewhere."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._terminal = out.isatty()
        self._next_s = clock()

    def show(self, counts: Counts) -> None:
        """Shows the counts, unless it did so a moment ago."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + (TERMINAL_EVERY_S if self._terminal else PLAIN_EVERY_S)
        running = counts.sent - counts.done - counts.failed
        line = f"{counts.sent} of {counts.total} sent, {running} running, {counts.failed} failed"
        print(f"\r{line:<60}" if self._terminal else line, end="" if self._terminal else "\n", file=self._out)
        self._out.flush()

    def end(self) -> None:
        """Clears the changing line."""
        if self._terminal:
            print(f"\r{'':<60}\r", end="", file=self._out, flush=True)


def output_folder(config: BenchConfig) -> Path:
    """Makes the folder of the report before the run, so that a run is not lost for want of one.

    Raises:
        ConfigError: it can't be made.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = config.output or Path("results") / f"bench-serve-{stamp}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror}") from error
    return folder


def save(result: RunResult, folder: Path, console: Console) -> None:
    """Prints the table and writes report.json and plot.png."""
    (folder / "report.json").write_bytes(orjson.dumps(as_json(result), option=orjson.OPT_INDENT_2))
    write_plot(result, folder / "plot.png")
    console.print(class_table(result))
    for line in (*footnotes(result), f"saved {folder / 'report.json'} and plot.png"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _settings(config: BenchConfig, model: str, maker: PromptMaker) -> dict[str, Any]:
    """The flags without secrets and without folders of this machine."""
    settings = config.model_dump(mode="json", exclude={"api_key", "output", "model_dir", "trace"})
    trace = config.trace.name if config.trace else None
    return settings | {"model": model, "trace": trace, "exact_prompts": maker.exact}
