"""Tensor parallelism: which part of every matrix a rank keeps, and what ranks say to each other during a
step.

Rank 0 has the host: it packs each step and sends it to the others, who run the same layers on their heads and
return nothing. Two sums per layer, one gathering of logits per step, over torch.distributed (gloo on CPU,
nccl on GPUs).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from twolane.core.errors import ConfigError
from twolane.engine.batch import Batch
from twolane.engine.meeting import Meeting
from twolane.engine.parallel_settings import TensorParallel
from twolane.engine.spec import ModelSpec

_STOP, _IDLE, _STEP = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a model that one rank keeps."""

    rank: int = 0
    size: int = 1

    def part(self, total: int) -> slice:
        """This rank's range of `total` equal units; the last may be shorter."""
        width = -(-total // self.size)
        return slice(min(self.rank * width, total), min((self.rank + 1) * width, total))

    def check(self, spec: ModelSpec) -> None:
        """Raises ConfigError naming the first size that can't be split."""
        sizes = {
            "num_attention_heads": spec.n_heads,
            "num_key_value_heads": spec.n_kv_heads,
            "intermediate_size": spec.intermediate_size,
        }
        for name, value in sizes.items():
            if value % self.size != 0:
                raise ConfigError(
                    f"{name} {value} can't be split over {self.size} tensor-parallel ranks; use a divisor"
                )


class Completed:
    """Counts the steps that this rank has run, for threads that read their pages."""

    def __init__(self) -> None:
        self._steps = 0
        self._changed = threading.Condition()

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._steps

    def advance(self) -> None:
        """One more."""
        with self._changed:
            self._steps += 1
            self._changed.notify_all()

    def wait_for(self, steps: int, timeout_s: float) -> bool:
        """Waits until so many are done; False: not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._steps >= steps, timeout_s)


class Ranks:
    """The connection of one rank to the others.

    Attributes:
        shard: this rank's part.
        meeting: where ranks tell each other what is no part of a step.
        timeout_s: how long a step waits for a rank.
        completed: steps run.
    """

    def __init__(self, settings: TensorParallel, device: torch.device) -> None:
        """Joins the others.

        Raises:
            ConfigError: not all ranks came within the timeout, or the place is wrong.
        """
        self.meeting = Meeting(settings)
        self.shard = Shard(settings.rank, settings.size)
        self.timeout_s = settings.timeout_s
        self.completed = Completed()
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("collectives", self.meeting.store),
            rank=settings.rank,
            world_size=settings.size,
            timeout=timedelta(seconds=settings.timeout_s),
            # Without it NCCL guesses the device from the rank's number, and connects in the first step.
            device_id=device if device.type == "cuda" else None,
        )

    @property
    def is_first(self) -> bool:
        """Whether this rank has the host."""
        return self.shard.rank == 0

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Adds up all ranks' tensors, in place."""
        dist.all_reduce(partial)
        return partial

    def gather(self, part: torch.Tensor, width: int) -> torch.Tensor:
        """Joins the ranks' columns [S, at most width] on rank 0; the others get their own back."""
        padded = torch.nn.functional.pad(part, (0, width - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.shard.size)] if self.is_first else None
        dist.gather(padded, parts, dst=0)
        return part if parts is None else torch.cat(parts, dim=1)

    def send(self, batch: Batch | None) -> None:
        """Rank 0 tells the others what to run; None only keeps the connection alive."""
        if batch is None:
            self._broadcast(np.array([_IDLE, 0, 0, 0, 0, 0], dtype=np.int64))
            return
        n_rows, n_pages = batch.table.shape
        sizes = [_STEP, n_rows, len(batch.ids), n_pages, len(batch.places), batch.n_decode]
        self._broadcast(np.array(sizes, dtype=np.int64))
        fields = (
            batch.ids,
            batch.positions,
            batch.starts,
            batch.lengths,
            batch.ends,
            batch.table.reshape(-1),
        )
        self._broadcast(np.concatenate((*fields, np.array(batch.places, dtype=np.int64), batch.last)))

    def receive(self) -> Batch | None:
        """The next step from rank 0, or None when it is over."""
        while True:
            kind, n_rows, n_tokens, n_pages, n_places, n_decode = self._broadcast(np.zeros(6, dtype=np.int64))
            if kind == _STOP:
                return None
            if kind == _STEP:
                break
        sizes = [n_tokens, n_tokens, n_rows, n_rows, n_rows, n_rows * n_pages, n_places, n_places]
        flat = self._broadcast(np.zeros(int(sum(sizes)), dtype=np.int64))
        ids, positions, starts, lengths, ends, table, places, last = np.split(flat, np.cumsum(sizes)[:-1])
        return Batch(
            order=list(range(int(n_rows))),
            n_decode=int(n_decode),
            ids=ids,
            positions=positions,
            starts=starts,
            lengths=lengths,
            ends=ends,
            table=table.reshape(int(n_rows), int(n_pages)),
            places=places.tolist(),
            sampled=places.tolist(),
            last=last,
        )

    def close(self) -> None:
        """Rank 0 releases the others; every rank leaves."""
        if self.is_first:
            self._broadcast(np.array([_STOP, 0, 0, 0, 0, 0], dtype=np.int64))
        self.meeting.leave()
        dist.destroy_process_group()

    def _broadcast(
        self, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        tensor = torch.from_numpy(values).to(self._device)
        dist.broadcast(tensor, src=0)
        return tensor.cpu().numpy()
