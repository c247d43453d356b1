"""`twolane profile`: times the steps of the real engine on this device and saves what the simulator needs.

Loads the model as a worker would, measures, fits, prints how well the fit describes the measurement, and
writes one JSON file for `twolane simulate --profile`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from twolane.bench.machine import machine_facts
from twolane.cli.topology import UpConfig, model_folder
from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.sim.fit import StepSample, fit_errors, fit_profile
from twolane.sim.logged_steps import LoggedStep, fit_logged, read_steps
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import ProfileFile
from twolane.worker.step_times import StepTime, copy_bytes_per_s, shapes_for, time_steps

# One page has to be taken up by the receiver and the row to join the next step.
LANDING_S = 0.001


class ProfileConfig(ProcessConfig):
    """What to measure."""

    process: ClassVar[str] = "profile"

    model_dir: str = ""
    """A Hugging Face model folder; empty: the demo model."""
    random_weights: bool = False
    """Draw weights instead of reading them: the folder then needs config.json only."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of weights and pages."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_threads: int = Field(default=1, ge=1)
    """Threads of tensor operations on a CPU."""
    page_tokens: int = Field(default=16, ge=1)
    """Tokens of a page."""
    kv_memory_mib: int = Field(default=256, ge=1)
    """Memory of the page pool, as the workers to be simulated have it."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Prompt plus answer at most; unset takes the model's own limit."""
    max_decode_rows: int = Field(default=64, ge=1)
    """Answers of a step at most."""
    rounds: int = Field(default=9, ge=1)
    """Measurements of each shape at most; the median counts."""
    budget_s: float = Field(default=60.0, gt=0)
    """No further round begins after so many seconds."""
    clock: Literal["elapsed", "processor"] = "elapsed"
    """Seconds that count; on a CPU that others use too, those of the processor are steadier."""
    steps: Path | None = None
    """Folder of the logs of running workers (--step-log-dir): their steps are fitted, none are timed here."""
    link_gbit_s: float | None = Field(default=None, gt=0)
    """Network between two workers; unset: the speed at which pages are copied within this device."""
    name: str = ""
    """Name in reports; empty: model folder and device."""
    out: Path = Path("profile.json")
    """The file to write."""


def main(argv: list[str]) -> int:
    """Measures, prints the fit, writes the file; returns the exit status."""
    config = ProfileConfig.from_args(argv)
    if not config.out.resolve().parent.is_dir():
        raise ConfigError(f"--out {config.out}: there is no such folder")
    torch.set_num_threads(config.num_threads)
    steps = logged(config.steps) if config.steps is not None else []
    engine = _load(config)
    if config.steps is None:
        measured = _measure(engine, config)
        found = profile_of(engine, measured, copy_bytes_per_s(engine), config)
    else:
        found = profile_of_log(engine, steps, copy_bytes_per_s(engine), config)
    config.out.write_bytes(found.as_json())
    print(summary(found))
    print(f"saved {config.out}")
    return 0


def _load(config: ProfileConfig) -> Engine:
    folder = Path(config.model_dir).expanduser() if config.model_dir else model_folder(UpConfig())
    return Engine.load(
        EngineConfig(
            model_dir=folder,
            dtype=config.dtype,
            device=config.device,
            page_tokens=config.page_tokens,
            kv_memory_bytes=config.kv_memory_mib << 20,
            max_model_len=config.max_model_len,
            num_threads=config.num_threads,
            random_weights=config.random_weights,
        )
    )


def logged(folder: Path) -> list[LoggedStep]:
    """All steps of a folder's logs.

    Raises:
        ConfigError: there is none.
        InvalidRequest: one is malformed.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise ConfigError(f"--steps {folder}: no logs there; start workers with --step-log-dir")
    return [
        step
        for path in paths
        for step in read_steps(path.read_text(encoding="ascii").splitlines(), path.name)
    ]


def _measure(engine: Engine, config: ProfileConfig) -> list[StepTime]:
    def say(done: int, total: int) -> None:
        if done % 25 == 0 or done == total:
            print(f"\r{done} of at most {total} steps", end="", file=sys.stderr, flush=True)

    pool_tokens = engine.pool.n_pages * config.page_tokens
    # Every sequence may leave part of its last page unused, and takes one token more.
    shapes = shapes_for(engine.fingerprint.max_model_len, int(0.9 * pool_tokens), config.max_decode_rows)
    measured = time_steps(engine, shapes, config.rounds, config.budget_s, say)
    print(file=sys.stderr)
    return measured


def profile_of(
    engine: Engine, measured: list[StepTime], bytes_per_s: float, config: ProfileConfig
) -> ProfileFile:
    """The profile of measured steps, with its errors."""
    elapsed = config.clock == "elapsed" or engine.kv.is_cuda
    samples = [
        StepSample(**asdict(each.shape), seconds=each.seconds if elapsed else max(each.processor_s, 1e-9))
        for each in measured
    ]
    memory = _memory(engine, bytes_per_s, config)
    profile = fit_profile(samples, *memory)
    share = sum(each.processor_s for each in measured) / sum(each.seconds for each in measured)
    notes = (
        f"{'Elapsed' if elapsed else 'Processor'} seconds, medians of up to {config.rounds} rounds.",
        _link_note(config),
        f"The processor worked for {share:.0%} of the elapsed seconds of the steps.",
    )
    return _file(engine, profile, notes, fit_errors(samples, profile), config)


def profile_of_log(
    engine: Engine, steps: list[LoggedStep], bytes_per_s: float, config: ProfileConfig
) -> ProfileFile:
    """The profile of steps that workers have logged; memory and links are this engine's."""
    size, capacity, link, landing_s = _memory(engine, bytes_per_s, config)
    base = EngineProfile(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, size, capacity, link, landing_s)
    profile = fit_logged(steps, base)
    notes = (f"{len(steps):,} steps of running workers, fitted by their medians.", _link_note(config))
    return _file(engine, profile, notes, fit_errors(steps, profile), config)


def _memory(engine: Engine, bytes_per_s: float, config: ProfileConfig) -> tuple[int, int, float, float]:
    """Bytes of a token's KV, tokens that fit, bytes per second between workers, seconds of a landing."""
    kv_bytes = engine.kv[0].numel() * engine.kv.element_size() // config.page_tokens
    link_bytes_per_s = bytes_per_s if config.link_gbit_s is None else config.link_gbit_s * 1e9 / 8
    return kv_bytes, engine.pool.n_pages * config.page_tokens, link_bytes_per_s, LANDING_S


def _link_note(config: ProfileConfig) -> str:
    link = "pages copied within the device" if config.link_gbit_s is None else "as given"
    return f"Link between workers: {link}. Landing a transfer: assumed."


def _file(
    engine: Engine,
    profile: EngineProfile,
    notes: tuple[str, ...],
    fit: dict[str, dict[str, float]],
    config: ProfileConfig,
) -> ProfileFile:
    facts = asdict(machine_facts())
    device = facts["gpus"][0] if engine.kv.is_cuda and facts["gpus"] else facts["cpu"]
    named = engine.fingerprint.model
    model = f"{named} {str(engine.kv.dtype).removeprefix('torch.')}"
    return ProfileFile(config.name or f"{named} on {device}", model, device, True, profile, notes, fit, facts)


def summary(found: ProfileFile) -> str:
    """What was fitted and how far off it is, for a terminal."""
    one = found.profile
    lines = [
        f"{found.name}: {one.capacity_tokens:,} tokens of {one.kv_bytes_per_token:,} bytes",
        f"prefill step  {1e3 * one.overhead_s:.3f} ms + {1e6 * one.token_s:.3f} us a token"
        f" (at least {1e3 * one.weights_s:.3f} ms) + {1e6 * one.prompt_s:.1f} us a prompt"
        f" + {1e9 * one.cached_read_s:.2f} ns a cached token + {1e9 * one.attention_s:.4f} ns x L(L+2H)",
        f"decode step   {1e3 * (one.decode_overhead_s or 0):.3f} ms +"
        f" {1e6 * (one.decode_token_s or 0):.2f} us a row"
        f" (at least {1e3 * (one.decode_weights_s or 0):.3f} ms)"
        f" + {1e9 * one.decode_read_s:.2f} ns a held token",
        f"transfer      {one.transfer_bytes_per_s / 1e9:.2f} GB/s",
    ]
    for kind, errors in found.fit.items():
        lines.append(
            f"fit of {kind:8s} {errors['shapes']:3.0f} shapes, relative error: median"
            f" {errors['median_error']:.1%}, p90 {errors['p90_error']:.1%}, worst {errors['worst_error']:.1%}"
        )
    return "\n".join(lines)
