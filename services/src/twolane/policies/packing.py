"""Cuts a batch from ordered prompts, for every prefill policy; also bins for fixed-shape backends.

`pack` keeps to a token budget; `prepack` fills rows of one length (Prepacking, arXiv 2404.09529) for
backends whose steps have a fixed shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from twolane.policies.prefill import Chunk, WaitingPrefill


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch.

    Attributes:
        tokens: tokens of the batch at most.
        prompts: prompts in it at most.
        prompt_tokens: tokens taken from one prompt at most.
        one_unfinished: a prompt that the batch leaves unfinished is the batch's last.
    """

    tokens: int
    prompts: int = 10**9
    prompt_tokens: int = 10**9
    one_unfinished: bool = True


def pack(ordered: Iterable[WaitingPrefill], limits: BatchLimits) -> tuple[Chunk, ...]:
    """Takes prompts in the given order until a limit is met; the first always gets at least a token."""
    chunks: list[Chunk] = []
    room = limits.tokens
    for prompt in ordered:
        if room <= 0 or len(chunks) >= limits.prompts:
            break
        tokens = min(prompt.uncached_tokens, limits.prompt_tokens, room)
        chunks.append(Chunk(prompt.request_id, tokens))
        room -= tokens
        if limits.one_unfinished and tokens < prompt.uncached_tokens:
            break
    return tuple(chunks)


def prepack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Puts prompts into rows of `row_tokens`, by first fit of the longest first.

    Returns:
        Positions in `lengths` per row. First-fit-decreasing needs at most 11/9 of the fewest rows
        plus one.

    Raises:
        ValueError: a prompt is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[position]
        if length > row_tokens:
            raise ValueError(f"a prompt of {length} tokens does not fit a row of {row_tokens}")
        row = next((index for index, free in enumerate(room) if free >= length), None)
        if row is None:
            rows.append([])
            room.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(position)
        room[row] -= length
    return rows
