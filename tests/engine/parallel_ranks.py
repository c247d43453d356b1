"""Runs tensor-parallel ranks as forked processes of this one and prints rank 0's answers as JSON.

Usage: parallel_ranks.py FOLDER DEVICE SIZE..., with device cpu or cuda (rank r takes the r-th). Started by
test_parallel.py, so that the test's own process stays free of process groups.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
from pathlib import Path

import torch

from twolane.core.request import SamplingParams
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.engine.parallel_settings import TensorParallel
from twolane.engine.sequence import Row, Sequence

PROMPTS = [list(range(3, 25)), [9, 8, 7], [50 + i * 7 % 90 for i in range(41)]]


def answers(engine: Engine, n_new: int = 10) -> list[dict[str, list[float]]]:
    """Greedy answers with log probabilities: chunks of 16 tokens, then decode, all rows at once."""
    sampling = SamplingParams(max_tokens=n_new, temperature=0.0, top_logprobs=0)
    sequences = [
        Sequence(str(i), list(p), len(p), sampling, page_ids=engine.pool.allocate(16))
        for i, p in enumerate(PROMPTS)
    ]
    logprobs: list[list[float]] = [[] for _ in sequences]
    first = True
    while any(sequence.n_generated < n_new for sequence in sequences):
        rows = []
        for sequence in sequences:
            left = len(sequence.tokens) - sequence.n_computed
            rows.append(Row(sequence, min(left, 16), left <= 16))
        if first:
            # A step that samples nothing.
            rows, first = [rows[-1]], False
        engine.keep_alive()
        for row, drawn in zip(rows, engine.step(rows), strict=True):
            if drawn is not None:
                assert drawn.logprob is not None
                row.sequence.tokens.append(drawn.token_id)
                logprobs[sequences.index(row.sequence)].append(drawn.logprob.logprob)
    return [
        {"tokens": list(sequence.tokens[sequence.n_prompt :][:n_new]), "logprobs": found[:n_new]}
        for sequence, found in zip(sequences, logprobs, strict=True)
    ]


def run_rank(folder: str, device: str, rank: int, size: int, address: str) -> None:
    """One rank's life."""
    torch.set_num_threads(1)
    place = TensorParallel(rank, size, address, timeout_s=60) if size > 1 else None
    config = EngineConfig(
        Path(folder),
        dtype="float32",
        device=device if device == "cpu" else f"{device}:{rank}",
        n_pages=64,
        page_tokens=4,
        max_model_len=128,
        parallel=place,
    )
    engine = Engine.load(config)
    if rank == 0:
        print(json.dumps({"kv": list(engine.kv.shape), "answers": answers(engine)}), flush=True)
    else:
        engine.follow()
    engine.close()


def main() -> None:
    """Runs the engine with every number of ranks asked for, one after the other."""
    folder, device, *sizes = sys.argv[1:]
    for size in sizes:
        run_ranks(folder, device, int(size))


def run_ranks(folder: str, device: str, size: int) -> None:
    """Forks the other ranks and is rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    forked = multiprocessing.get_context("fork")
    others = [
        forked.Process(target=run_rank, args=(folder, device, rank, size, address)) for rank in range(1, size)
    ]
    for process in others:
        process.start()
    run_rank(folder, device, 0, size, address)
    for process in others:
        process.join(60)
    if any(process.exitcode != 0 for process in others):
        raise SystemExit(f"ranks ended with {[process.exitcode for process in others]}")


if __name__ == "__main__":
    main()
