"""Captured graphs of padded steps: one per bucket, replayed when a step fits and the gate allows.

Used by the kernel path. How to record is an argument: CUDA graphs on a device, a plain closure in tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from twolane.engine.batch import Batch
from twolane.engine.buckets import Bucket, Costs, Gate, Grid, Kind
from twolane.engine.spec import ModelSpec
from twolane.engine.step_inputs import StaticInputs, StepInputs

log = logging.getLogger(__name__)

Compute = Callable[[StepInputs], torch.Tensor]

# Nominal, for choosing a grid before anything is measured: kernels of a layer, seconds to launch one, and
# memory of one recorded graph. Only their ratio to the padding costs matters.
_KERNELS_PER_LAYER = 9
_LAUNCH_S = 4e-6
_GRAPH_BYTES = 4 << 20
_PADDED_FLOPS_PER_S = 2e14


class Recorder(Protocol):
    """Turns a computation on fixed inputs into something that repeats it."""

    def record(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Returns the repeat function and the tensor in which every repeat leaves its result."""
        ...

    def used_bytes(self) -> int:
        """Device memory in use now, to tell what recording took."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, so that activations are held once."""

    def __init__(self, device: torch.device) -> None:
        """Takes the device that everything runs on."""
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Runs once for compilation and to choose how decode attention is launched, then captures.

        Other kernels take what was measured before or their default: their candidates would cost a start
        more than they give.
        """
        # Only a device has kernels to tune.
        from twolane.kernels import tuning

        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side), tuning.measuring("paged_decode_attention"):
            compute()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile, transfers say, is none of the graph's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()
        return graph.replay, result

    def used_bytes(self) -> int:
        """Bytes of the device that are not free."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: StaticInputs
    replay: Callable[[], None]
    logits: torch.Tensor


class GraphRunner:
    """The captured graphs of one forward pass."""

    def __init__(self, compute: Compute, recorder: Recorder, gate: Gate) -> None:
        """Takes what to capture, how, and when to use it."""
        self._compute = compute
        self._recorder = recorder
        self._gate = gate
        self._grid = Grid()
        self._captured: dict[Bucket, _Captured] = {}

    def capture(self, grid: Grid, table_pages: int, kv: torch.Tensor) -> int:
        """Records every bucket, the largest first so that the others find memory in the shared pool.

        Where memory runs out, the buckets recorded so far are all there are.

        Args:
            grid: the buckets.
            table_pages: pages of the longest sequence.
            kv: the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim].
        """
        before = self._recorder.used_bytes()
        for bucket in sorted(grid.buckets, key=lambda bucket: -bucket.n_tokens):
            try:
                static = StaticInputs(bucket, table_pages, kv.shape[4], kv.device)
                static.rehearse(kv.shape[0])
                replay, logits = self._recorder.record(partial(self._compute, static.inputs))
            except torch.OutOfMemoryError as error:
                log.warning("no memory for a graph of %s: %s", bucket, error)
                break
            self._captured[bucket] = _Captured(static, replay, logits)
        self._grid = Grid(tuple(self._captured))
        return self._recorder.used_bytes() - before

    @property
    def n_graphs(self) -> int:
        """Graphs recorded."""
        return len(self._captured)

    def run(self, kind: Kind, batch: Batch, queue_depth: int) -> torch.Tensor | None:
        """Replays the best bucket and returns the sampled rows' logits [S, vocab_size]; None if none fits."""
        bucket = self._grid.choose(kind, len(batch.order), len(batch.ids), self._gate, queue_depth)
        if bucket is None:
            return None
        captured = self._captured[bucket]
        captured.inputs.fill(batch)
        captured.replay()
        if len(batch.places) == len(batch.order):
            return captured.logits[: len(batch.order)]
        return captured.logits[batch.places]


def nominal_costs(spec: ModelSpec, element_bytes: int, table_pages: int) -> Costs:
    """Costs of a model's buckets from its shapes; launch times are nominal, not measured."""
    width = spec.n_heads + 2 * spec.n_kv_heads
    per_token = 3 * spec.hidden_size + 2 * width * spec.head_dim + 3 * spec.intermediate_size
    layer_weights = spec.hidden_size * ((width + spec.n_heads) * spec.head_dim + 3 * spec.intermediate_size)
    head_weights = spec.hidden_size * spec.vocab_size
    return Costs(
        launch_s=spec.n_layers * _KERNELS_PER_LAYER * _LAUNCH_S,
        token_s=2 * spec.n_layers * layer_weights / _PADDED_FLOPS_PER_S,
        row_s=2 * head_weights / _PADDED_FLOPS_PER_S,
        fixed_bytes=_GRAPH_BYTES,
        token_bytes=per_token * element_bytes,
        row_bytes=spec.vocab_size * element_bytes + 2 * table_pages * 4,
    )
