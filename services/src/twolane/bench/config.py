"""Flags of `twolane bench serve`, and the requests of the run that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, SecretStr

from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.latency import SloLimits
from twolane.workload.traces import TraceRequest, read_sessions, read_trace, spread_ties


class BenchConfig(ProcessConfig):
    """A replay against one OpenAI address; without --trace the load is generated."""

    process: ClassVar[str] = "bench"
    verb: ClassVar[str] = "bench serve"

    url: str = "http://127.0.0.1:8000"
    """Address of the server, without /v1."""
    model: str = ""
    """Model to ask; empty: the first one the server names."""
    api_key: SecretStr | None = None
    """Key to show; better given as TWOLANE_BENCH_API_KEY, which no process list shows."""
    output: Path | None = None
    """Folder for report.json and plot.png; unset: a new one under results/."""
    seed: int = Field(default=0, ge=0)
    """Seed of the load and of the prompts' contents."""

    trace: Path | None = None
    """A trace (.csv or .csv.gz with arrival_s, input_tokens, output_tokens) to replay."""
    rate_scale: float = Field(default=1.0, gt=0)
    """The trace's requests arrive this many times faster."""
    sessions_per_s: float | None = Field(default=None, gt=0)
    """For a trace of sessions: mean rate at which sessions start."""
    spread_ties: bool = False
    """Spread requests with equal times up to the next time (traces with a coarse clock)."""
    requests: int = Field(default=200, ge=1, le=100_000)
    """Requests at most."""
    max_input_tokens: int = Field(default=32_768, ge=1)
    """Longer prompts are left out; the report says how many."""
    max_output_tokens: int = Field(default=1024, ge=1)
    """Longer answers are cut to this."""

    rate_per_s: float = Field(default=2.0, gt=0)
    """Generated load: mean arrivals per second."""
    duration_s: float = Field(default=60.0, gt=0, le=86_400)
    """Generated load: seconds over which requests arrive."""
    arrival_cv: float = Field(default=1.0, gt=0)
    """Generated load: variation of the gaps; 1 is Poisson, more is bursty."""
    short_share: float = Field(default=0.8, ge=0, le=1)
    """Generated load: share of short prompts."""
    long_low_tokens: int = Field(default=1024, ge=1)
    """Generated load: least uncached tokens of a long prompt."""
    long_high_tokens: int = Field(default=8192, ge=1)
    """Generated load: most uncached tokens of a long prompt."""
    turns_max: int = Field(default=8, ge=1)
    """Generated load: turns of a conversation at most; 1: no shared history."""
    length_scale: float = Field(default=1.0, gt=0)
    """Generated load: multiplies every length, so that a small model can be driven by the same mix."""

    prompts: Literal["auto", "words", "token-ids", "text"] = "auto"
    """Words (about a token each), token ids, or text of counted length; auto: ids with --model-dir."""
    model_dir: Path | None = None
    """Folder with the model's tokenizer.json: prompts then have exactly the tokens asked for."""
    reuse_prefixes: bool = True
    """Begin prompts with as many shared tokens as the load says are cached."""
    ignore_eos: bool = True
    """Ask for answers of exactly the load's length (twolane, vLLM and SGLang know this field)."""
    warmup: int = Field(default=2, ge=0, le=100)
    """Requests sent one by one before the run, and not counted."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """A request that takes longer is given up and counted as client_timeout."""

    short_max_uncached_tokens: int = Field(default=256, ge=1)
    """A prompt with at most so many uncached tokens counts as short."""
    slo_ttft_short_s: float = Field(default=0.4, gt=0)
    """Limit of the time to the first token of a short prompt."""
    slo_ttft_long_s: float = Field(default=2.0, gt=0)
    """The same for a long prompt."""
    slo_tpot_s: float = Field(default=0.1, gt=0)
    """Limit of the mean time per further token."""

    @property
    def slo(self) -> SloLimits:
        """The limits an answer must keep to count."""
        return SloLimits({"short": self.slo_ttft_short_s, "long": self.slo_ttft_long_s}, self.slo_tpot_s)

    def length_class(self, request: TraceRequest) -> str:
        """ "short" or "long", by what a prefill worker must compute."""
        return "short" if request.uncached_tokens <= self.short_max_uncached_tokens else "long"


def load_of(config: BenchConfig) -> tuple[list[TraceRequest], int]:
    """The requests to send, in order of arrival, and how many were left out as too long.

    Raises:
        NotFound: there is no such trace.
        InvalidRequest: the trace or a setting of the mix is malformed.
        ConfigError: nothing is left to send.
    """
    rng = np.random.default_rng(config.seed)
    offered = _offered(config, rng)
    if config.spread_ties:
        offered = spread_ties(offered, rng)
    kept: list[TraceRequest] = []
    left_out = 0
    for request in offered:
        if len(kept) == config.requests:
            break
        if request.input_tokens > config.max_input_tokens:
            left_out += 1
        else:
            kept.append(request)
    if not kept:
        raise ConfigError(
            f"the load has no request with at most {config.max_input_tokens} prompt tokens: "
            "raise --max-input-tokens, or --duration-s and --rate-per-s"
        )
    first_s = kept[0].arrival_s
    cut = config.max_output_tokens
    return [
        TraceRequest(r.arrival_s - first_s, r.input_tokens, min(r.output_tokens, cut), r.cached_tokens)
        for r in kept
    ], left_out


def _offered(config: BenchConfig, rng: np.random.Generator) -> list[TraceRequest]:
    if config.trace is None:
        return generate_mix(_mix(config), rng)
    if config.sessions_per_s is not None:
        # No cap here: what is too long is counted by the caller.
        return read_sessions(
            config.trace, sessions_per_s=config.sessions_per_s, rng=rng, max_input_tokens=2**31
        )
    return read_trace(config.trace, rate_scale=config.rate_scale)


def _mix(config: BenchConfig) -> MixSettings:
    return MixSettings(
        rate_per_s=config.rate_per_s,
        duration_s=config.duration_s,
        short_share=config.short_share,
        long_low_tokens=config.long_low_tokens,
        long_high_tokens=config.long_high_tokens,
        turns_max=config.turns_max,
        arrival_cv=config.arrival_cv,
        length_scale=config.length_scale,
    )
