"""Measures the engine on CPU against transformers: generate at equal batch, and continuous batching.

Run by hand: `python tests/bench/engine_cpu.py [--rounds 5] [--model FOLDER] [--json FILE]`. All parties run
one after the other in every round, on the same model, random prompts and thread count; the result is the
ratio within a round, in elapsed time and in processor time (which other load on the machine disturbs less).

One party, "products", does nothing but the matrix products of all steps, as fast as the engine does them. An
engine with these products can't be faster: products/generate bounds the ratio, engine/products is the share
of the bound that is reached.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from twolane.core.request import SamplingParams
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.engine.few_rows import Matrix
from twolane.engine.sequence import Row, Sequence

_TINY: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Layers and vocabulary of Qwen2.5-0.5B, 6 of its 24 layers: a round of all of them takes minutes on one core.
_HALF_BILLION: dict[str, Any] = _TINY | {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 6,
    "num_attention_heads": 14,
}
SHAPES = {"tiny": _TINY, "0.5b": _HALF_BILLION}


def engine_answers(engine: Engine, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """Greedy answers of the given lengths: one prefill step, then decode steps over the rows not yet done."""
    page_tokens = engine.fingerprint.page_tokens
    sequences = []
    for prompt, length in zip(prompts, lengths, strict=True):
        greedy = SamplingParams(max_tokens=length, temperature=0.0)
        pages = engine.pool.allocate(-(-(len(prompt) + length) // page_tokens))
        sequences.append(Sequence("bench", list(prompt), len(prompt), greedy, page_ids=pages))
    rows = [Row(sequence, len(sequence.tokens), True) for sequence in sequences]
    while rows:
        for row, drawn in zip(rows, engine.step(rows), strict=True):
            assert drawn is not None
            row.sequence.tokens.append(drawn.token_id)
        running = [
            row.sequence for row in rows if row.sequence.n_generated < row.sequence.sampling.max_tokens
        ]
        rows = [Row(sequence, 1, True) for sequence in running]
    for sequence in sequences:
        engine.pool.release(sequence.page_ids)
    return [list(sequence.tokens[sequence.n_prompt :]) for sequence in sequences]


def generate_answers(model: Any, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """Greedy answers by transformers' generate on a dense batch, padded on the left, all as long."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    n_new = max(lengths)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=n_new,
            min_new_tokens=n_new,
            do_sample=False,
            pad_token_id=0,
        )
    return [row[longest : longest + length].tolist() for row, length in zip(out, lengths, strict=True)]


def continuous_answers(model: Any, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """Greedy answers by transformers' continuous batching."""
    config = transformers.GenerationConfig(
        max_new_tokens=n_new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    results = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    return [results[key].generated_tokens for key in sorted(results)]


def products_alone(
    engine: Engine, matrices: dict[int, Matrix], prompts: list[list[int]], lengths: list[int]
) -> list[list[int]]:
    """The matrix products of the same steps, in the same order, on rows that are there already."""
    model = engine._model
    rows = [sum(len(prompt) for prompt in prompts)]
    rows += [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    inputs: dict[tuple[int, int], torch.Tensor] = {}

    def multiply(n_rows: int, weight: torch.Tensor) -> None:
        n_in = weight.shape[1]
        if (n_rows, n_in) not in inputs:
            inputs[n_rows, n_in] = torch.ones(n_rows, n_in, dtype=model.dtype)
        matrices[id(weight)].times(inputs[n_rows, n_in])

    with torch.inference_mode():
        for number, n_rows in enumerate(rows):
            for layer in model.layers:
                for weight in (layer.qkv, layer.out, layer.gate_up, layer.down):
                    multiply(n_rows, weight)
            multiply(len(prompts) if number == 0 else n_rows, model.head)
    return [[0] * length for length in lengths]


def matrices_of(engine: Engine) -> dict[int, Matrix]:
    """The engine's products, by the identity of their weights."""
    model = engine._model
    weights = [model.head]
    for layer in model.layers:
        weights += [layer.qkv, layer.out, layer.gate_up, layer.down]
    return {id(weight): Matrix(weight, None) for weight in weights}


Rates = dict[str, list[tuple[float, float]]]


def measure(parties: dict[str, Callable[[], list[list[int]]]], rounds: int, n_tokens: int) -> Rates:
    """Tokens per second, elapsed and processor, of each party and round; a first round only warms up."""
    rates: Rates = {name: [] for name in parties}
    for number in range(rounds + 1):
        for name, run in parties.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            answers = run()
            elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
            if sum(len(answer) for answer in answers) != n_tokens:
                raise RuntimeError(f"{name} gave {[len(answer) for answer in answers]} tokens")
            if number:
                rates[name].append((n_tokens / elapsed_s, n_tokens / cpu_s))
    return rates


def report(case: str, rates: Rates) -> dict[str, Any]:
    """Prints medians, and least, median and largest ratio of the engine to each other party within rounds."""
    line: dict[str, Any] = {"case": case}
    for kind, what in enumerate(("elapsed", "cpu")):
        ours = [rate[kind] for rate in rates["engine"]]
        for name, pairs in rates.items():
            values = [rate[kind] for rate in pairs]
            line[f"{name} tok/s {what}"] = round(statistics.median(values), 1)
            if name != "engine":
                ratios = sorted(own / other for own, other in zip(ours, values, strict=True))
                spread = (ratios[0], statistics.median(ratios), ratios[-1])
                line[f"engine/{name} {what}"] = [round(ratio, 2) for ratio in spread]
        if "products" in rates:
            rounds = zip(rates["products"], rates["generate"], strict=True)
            bounds = [bound[kind] / other[kind] for bound, other in rounds]
            line[f"products/generate {what}"] = round(statistics.median(bounds), 2)
    print(json.dumps(line), flush=True)
    return line


def load(folder: Path | None, shape: str, dtype: str, compiled: bool = True) -> tuple[Any, Engine]:
    """The same weights in both: of a folder, or random ones of a shape."""
    kind = getattr(torch, dtype)
    if folder is not None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        own = EngineConfig(folder, device="cpu", dtype=dtype, kv_memory_bytes=512 << 20, compiled=compiled)
        return model, Engine.load(own)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES[shape])).to(kind).eval()
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        (Path(made) / "tokenizer.json").write_text("{}")
        own = EngineConfig(
            Path(made), device="cpu", dtype=dtype, kv_memory_bytes=512 << 20, compiled=compiled
        )
        return model, Engine.load(own)


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of random weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--no-compiler", action="store_true", help="the engine's path in plain torch")
    parser.add_argument("--no-continuous", action="store_true", help="leave out continuous batching")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model, engine = load(args.model, args.shape, args.dtype, not args.no_compiler)
    matrices = matrices_of(engine)
    facts = {"model": str(args.model or args.shape), "dtype": args.dtype, "threads": args.threads}
    facts |= {"prompt": args.prompt, "new": args.new, "rounds": args.rounds, "torch": torch.__version__}
    facts |= {"transformers": transformers.__version__, "processor": processor(), "load": os.getloadavg()}
    print(json.dumps(facts), flush=True)
    lines = [facts]
    cases = [
        (f"batch {batch}, equal lengths", [args.prompt] * batch, [args.new] * batch) for batch in args.batches
    ]
    mixed = [max(1, args.prompt * (place + 1) // 8) for place in range(16)]
    cases.append(("batch 16, mixed lengths", mixed, [max(1, args.new * (16 - i) // 16) for i in range(16)]))
    for case, prompt_lengths, lengths in cases:
        prompts = [torch.randint(3, engine.spec.vocab_size, (length,)).tolist() for length in prompt_lengths]
        parties: dict[str, Callable[[], list[list[int]]]] = {
            "engine": partial(engine_answers, engine, prompts, lengths),
            "generate": partial(generate_answers, model, prompts, lengths),
            "products": partial(products_alone, engine, matrices, prompts, lengths),
        }
        if case == "batch 16, equal lengths" and not args.no_continuous:
            parties["continuous"] = partial(continuous_answers, model, prompts, args.new)
        lines.append(report(case, measure(parties, args.rounds, sum(lengths))))
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
