"""Device tensors of one step for the kernel path, exact in size or padded to a bucket.

Padding is inert: padded tokens have a negative slot (nothing is written), padded rows a context of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from twolane.engine.batch import Batch, Integers
from twolane.engine.buckets import Bucket, Kind


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the kernels of one step read: R rows, T tokens.

    Attributes:
        n_decode: rows (and tokens) handled by the decode kernel; they come first.
        slots: page * page_tokens + offset of each token, int64 [T].
        ids, positions: int32 [T].
        contexts: tokens of each row after this step, int32 [R].
        starts: first prefill token of each prefill row and the end, relative to n_decode, int32.
        last: tokens whose logits are wanted, int32.
        table: page numbers, int32 [R, P].
    """

    n_decode: int
    slots: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    contexts: torch.Tensor
    starts: torch.Tensor
    last: torch.Tensor
    table: torch.Tensor


def exact_inputs(batch: Batch, page_tokens: int, device: torch.device) -> StepInputs:
    """Inputs of an eager step; `last` has the sampled rows only."""
    ends = batch.ends[batch.n_decode :] - batch.n_decode
    parts = {
        "ids": batch.ids,
        "positions": batch.positions,
        "contexts": batch.starts + batch.lengths,
        "starts": np.concatenate((np.zeros(1, dtype=np.int64), ends)),
        "last": batch.last,
        "table": batch.table,
    }
    slots = torch.from_numpy(_slots(batch, page_tokens)).to(device)
    return StepInputs(batch.n_decode, slots, **_upload(parts, device))


class StaticInputs:
    """Inputs at fixed addresses, filled anew before each replay of a bucket's graph."""

    def __init__(self, bucket: Bucket, table_pages: int, page_tokens: int, device: torch.device) -> None:
        """Allocates for rows of at most `table_pages` pages; an empty step until filled."""
        self.bucket = bucket
        self._page_tokens = page_tokens
        n_rows, n_tokens = bucket.n_rows, bucket.n_tokens
        decode = bucket.kind is Kind.DECODE
        self._sizes = {
            "ids": (n_tokens,),
            "positions": (n_tokens,),
            "contexts": (n_rows,),
            "starts": (1 if decode else n_rows + 1,),
            "last": (n_rows,),
            "table": (n_rows, table_pages),
        }
        total = sum(int(np.prod(size)) for size in self._sizes.values())
        self._words = torch.zeros(total, dtype=torch.int32, device=device)
        slots = torch.full((n_tokens,), -1, dtype=torch.int64, device=device)
        views = _views(self._words, self._sizes)
        self.inputs = StepInputs(bucket.n_tokens if decode else 0, slots, **views)

    def fill(self, batch: Batch) -> None:
        """Copies a step of the bucket's kind that it covers; `last` gets every row's last token."""
        n_rows, n_tokens = len(batch.order), len(batch.ids)
        host = np.zeros(self._words.shape[0], dtype=np.int32)
        views = {name: view.numpy() for name, view in _views(torch.from_numpy(host), self._sizes).items()}
        views["ids"][:n_tokens] = batch.ids
        views["positions"][:n_tokens] = batch.positions
        views["contexts"][:n_rows] = batch.starts + batch.lengths
        if self.bucket.kind is Kind.PREFILL:
            views["starts"][1 : n_rows + 1] = batch.ends
            views["starts"][n_rows + 1 :] = n_tokens
        views["last"][:n_rows] = batch.ends - 1
        views["table"][:n_rows, : batch.table.shape[1]] = batch.table
        slots = np.full(self.bucket.n_tokens, -1, dtype=np.int64)
        slots[:n_tokens] = _slots(batch, self._page_tokens)
        self._words.copy_(torch.from_numpy(host))
        self.inputs.slots.copy_(torch.from_numpy(slots))


def _slots(batch: Batch, page_tokens: int) -> Integers:
    page, offset = np.divmod(batch.positions, page_tokens)
    return np.asarray(batch.table[batch.row_of, page] * page_tokens + offset)


def _upload(parts: dict[str, Integers], device: torch.device) -> dict[str, torch.Tensor]:
    """One copy for all arrays: each transfer has a fixed cost larger than its bytes'."""
    flat = np.concatenate([part.reshape(-1) for part in parts.values()]).astype(np.int32)
    words = torch.from_numpy(flat).to(device)
    return _views(words, {name: part.shape for name, part in parts.items()})


def _views(words: torch.Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    views, at = {}, 0
    for name, size in sizes.items():
        n_words = int(np.prod(size))
        views[name] = words[at : at + n_words].view(size)
        at += n_words
    return views
