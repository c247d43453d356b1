"""Trains the demo model from nothing on a CPU within a stated time, and writes the model folder.

`python deploy/demo_model/train.py --minutes 80 --out services/src/twolane/demo_model`.
With --steps the result depends on the seed alone; with --minutes also on the machine's speed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from batches import Batch, batches
from corpus import documents
from evaluate import answer, score
from model import make_model, save
from tokenizer import train_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_MUON_RATE, _ADAM_RATE = 6e-3, 4e-3
_WARMUP, _HOLD = 0.01, 0.3
# Part of the run after which long documents become common.
_LONG_FROM = 0.5


@dataclass
class Progress:
    """How far a run is; `done` goes from 0 to 1 by steps or, without a step count, by working time."""

    minutes: float
    steps: int | None
    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def done(self) -> float:
        """The finished part of the run."""
        part = self.step / self.steps if self.steps else self.elapsed_s / (60 * self.minutes)
        return min(1.0, part)

    @property
    def rate(self) -> float:
        """Learning rate as part of its peak: warm-up, hold, then linear to zero."""
        if self.done < _WARMUP:
            return (self.done + 1e-3) / (_WARMUP + 1e-3)
        return 1.0 if self.done < _HOLD else (1.0 - self.done) / (1.0 - _HOLD)


class Trainer:
    """Model and optimizers: Muon for the matrices of the layers, AdamW for embeddings and norms."""

    def __init__(self, model: LlamaForCausalLM, progress: Progress) -> None:
        self.model, self.progress = model, progress
        inner = [
            weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name
        ]
        outer = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
        self.muon = torch.optim.Muon(inner, lr=_MUON_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW(outer, lr=_ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, parts: list[Batch]) -> float:
        """One update from several batches; returns the mean weighted loss in nats."""
        weight = float(sum(part.weights[:, 1:].sum() for part in parts))
        total = 0.0
        for part in parts:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = self.model(input_ids=part.token_ids, use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), part.token_ids[:, 1:].flatten(), reduction="none"
            )
            loss = (losses * part.weights[:, 1:].flatten()).sum() / weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        peaks: list[tuple[torch.optim.Optimizer, float]] = [(self.muon, _MUON_RATE), (self.adam, _ADAM_RATE)]
        for optimizer, peak in peaks:
            optimizer.param_groups[0]["lr"] = peak * self.progress.rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def state(self) -> dict[str, object]:
        """All that resume() needs."""
        return {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "progress": (self.progress.step, self.progress.tokens, self.progress.elapsed_s),
        }

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint written by this script."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.progress.step, self.progress.tokens, self.progress.elapsed_s = state["progress"]


def _report(
    trainer: Trainer, tokenizer: PreTrainedTokenizerFast, loss: float, options: argparse.Namespace
) -> None:
    """Validate, show two answers, and write the model folder and, where asked for, a checkpoint."""
    model, progress = trainer.model, trainer.progress
    model.train(False)
    measured = score(model, tokenizer, 200)
    print(
        f"step {progress.step} done {progress.done:.3f} tokens {progress.tokens} "
        f"tokens/s {progress.tokens / progress.elapsed_s:.0f} "
        f"train {loss:.4f} validation {measured.nats_per_token:.4f} bits/char {measured.bits_per_char:.4f}",
        flush=True,
    )
    for prompt in ("Tell me a story about a fox.", "What is the capital of France?"):
        print("   ", answer(model, tokenizer, prompt), flush=True)
    model.train()
    save(model, tokenizer, options.out)
    if options.checkpoint:
        torch.save(trainer.state(), options.checkpoint)


def train(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
    """Run to the end of the budget, reporting every few minutes."""
    progress = trainer.progress
    seed = options.seed + progress.step
    streams: tuple[Iterator[Batch], ...] = tuple(
        batches(tokenizer, documents(seed + 1000 * long, bool(long)), options.batch_tokens, seed)
        for long in (0, 1)
    )
    reported_s, average = progress.elapsed_s, 0.0
    while progress.done < 1.0:
        start_s = time.monotonic()
        parts = [next(streams[progress.done >= _LONG_FROM]) for _ in range(options.parts)]
        loss = trainer.step(parts)
        average = loss if average == 0.0 else 0.97 * average + 0.03 * loss
        progress.step += 1
        progress.tokens += sum(len(part) for part in parts)
        progress.elapsed_s += time.monotonic() - start_s
        if progress.step % 20 == 0:
            print(f"{progress.step} {progress.done:.3f} {average:.4f}", flush=True)
        if progress.elapsed_s - reported_s > 60 * options.report_minutes:
            reported_s = progress.elapsed_s
            _report(trainer, tokenizer, average, options)
    _report(trainer, tokenizer, average, options)


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80, help="working time (default 80)")
    parser.add_argument(
        "--steps", type=int, help="steps instead of minutes: the same result on every run of a machine"
    )
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of one batch (default 4096)")
    parser.add_argument("--parts", type=int, default=2, help="batches of one step (default 2)")
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--checkpoint", type=Path, help="file for model and optimizer state at each report")
    parser.add_argument("--resume", type=Path, help="checkpoint to continue from")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(options.seed)
    model = make_model(tokenizer)
    print(f"{model.num_parameters()} parameters, vocabulary {len(tokenizer)}", flush=True)
    trainer = Trainer(model, Progress(options.minutes, options.steps))
    if options.resume:
        trainer.resume(options.resume)
    train(trainer, tokenizer, options)


if __name__ == "__main__":
    main()
