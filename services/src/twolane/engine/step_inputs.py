"""Device tensors of one step for the kernel path, exact in size or padded to a bucket.

Padding is inert: padded tokens have a negative slot (nothing is written), padded rows a context of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from twolane.engine.batch import Batch, Integers
from twolane.engine.buckets import Bucket, Kind

# Context of an answer in a rehearsed step.
_REHEARSED_TOKENS = 2048
# A prime, so that it divides no pool's size.
_SCATTER = 1_000_003


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
        # Slots take two words each and come first, so that they are aligned.
        sizes = {
            "slots": (n_tokens, 2),
            "ids": (n_tokens,),
            "positions": (n_tokens,),
            "contexts": (n_rows,),
            "starts": (1 if decode else n_rows + 1,),
            "last": (n_rows,),
        }
        n_words = sum(int(np.prod(size)) for size in sizes.values())
        self._words = torch.zeros(n_words, dtype=torch.int32, device=device)
        views = _views(self._words, sizes)
        slots = views.pop("slots").view(torch.int64).view(n_tokens).fill_(-1)
        table = torch.zeros((n_rows, table_pages), dtype=torch.int32, device=device)
        self.inputs = StepInputs(n_tokens if decode else 0, slots, **views, table=table)
        # Page numbers travel without the unused ends of their rows, which are most of a table.
        self._pages = torch.empty(n_rows * table_pages, dtype=torch.int32, device=device)
        self._host_words, self._host_pages = _pinned(n_words, device), _pinned(n_rows * table_pages, device)
        self._host = _split(self._host_words.numpy(), sizes)
        # Host memory may be written again once the copies of the step before are over.
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fill(self, batch: Batch) -> None:
        """Copies a step of the bucket's kind that it covers; `last` gets every row's last token."""
        if self._copied is not None:
            self._copied.synchronize()
        n_rows, n_tokens = len(batch.order), len(batch.ids)
        host = self._clear()
        host["slots"].view(np.int64)[:n_tokens, 0] = _slots(batch, self._page_tokens)
        host["ids"][:n_tokens] = batch.ids
        host["positions"][:n_tokens] = batch.positions
        host["contexts"][:n_rows] = batch.starts + batch.lengths
        if self.bucket.kind is Kind.PREFILL:
            host["starts"][1 : n_rows + 1] = batch.ends
            host["starts"][n_rows + 1 :] = n_tokens
        host["last"][:n_rows] = batch.ends - 1
        self._upload(batch.table)

    def rehearse(self, n_pages: int) -> None:
        """A step as it may come, for choosing launch configurations: on an empty one all are equally fast.

        Full rows on pages from all over the pool, prompts of equal length, answers behind up to 2,048 tokens;
        nothing is written into pages.
        """
        n_rows, n_tokens, columns = self.bucket.n_rows, self.bucket.n_tokens, self.inputs.table.shape[1]
        host = self._clear()
        ends = np.arange(1, n_rows + 1) * n_tokens // n_rows
        lengths = np.diff(ends, prepend=0)
        contexts = lengths
        if self.bucket.kind is Kind.DECODE:
            contexts = np.full(n_rows, min(_REHEARSED_TOKENS, (columns - 1) * self._page_tokens + 1))
        else:
            host["starts"][1:] = ends
        contexts = np.minimum(contexts, columns * self._page_tokens)
        host["positions"][:] = np.repeat(contexts - 1, lengths)
        host["contexts"][:] = contexts
        host["last"][:] = ends - 1
        width = -(-int(contexts.max()) // self._page_tokens)
        # A stride without a common divisor visits every page before it comes back to one.
        self._upload((np.arange(n_rows * width) * _SCATTER % n_pages).reshape(n_rows, width))

    def _clear(self) -> dict[str, npt.NDArray[np.int32]]:
        """Host memory of an empty step."""
        for name, values in self._host.items():
            values.fill(-1 if name == "slots" else 0)
        return self._host

    def _upload(self, table: npt.NDArray[np.int64]) -> None:
        n_rows, width = table.shape
        self._host_pages.numpy()[: n_rows * width] = table.reshape(-1)
        self._words.copy_(self._host_words, non_blocking=True)
        pages = self._pages[: n_rows * width]
        pages.copy_(self._host_pages[: n_rows * width], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self.inputs.table[:n_rows, :width].copy_(pages.view(n_rows, width))


def _pinned(n_words: int, device: torch.device) -> torch.Tensor:
    return torch.empty(n_words, dtype=torch.int32, pin_memory=device.type == "cuda")


def _slots(batch: Batch, page_tokens: int) -> Integers:
    page, offset = np.divmod(batch.positions, page_tokens)
    return np.asarray(batch.table[batch.row_of, page] * page_tokens + offset)


def _upload(parts: dict[str, Integers], device: torch.device) -> dict[str, torch.Tensor]:
    """One copy for all arrays: each transfer has a fixed cost larger than its bytes'."""
    flat = np.concatenate([part.reshape(-1) for part in parts.values()]).astype(np.int32)
    words = torch.from_numpy(flat).to(device)
    return _views(words, {name: part.shape for name, part in parts.items()})


def _views(words: torch.Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: words[begin:end].view(sizes[name]) for name, (begin, end) in _places(sizes).items()}


def _split(
    words: npt.NDArray[np.int32], sizes: dict[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.int32]]:
    return {name: words[begin:end].reshape(sizes[name]) for name, (begin, end) in _places(sizes).items()}


def _places(sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """First word and end of each array, one after the other."""
    ends = np.cumsum([int(np.prod(size)) for size in sizes.values()]).tolist()
    return dict(zip(sizes, zip([0, *ends[:-1]], ends, strict=True), strict=True))
