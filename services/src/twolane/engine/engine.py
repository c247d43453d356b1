"""The engine: loads a model folder, owns weights and KV pool, computes one packed step at a time.

Hosts (prefill, decode, worker) keep sequences and pages, choose the rows of each step and call `Engine.step`
from one thread. The engine never allocates or frees a page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Protocol

import torch

from twolane.core.model import ModelFingerprint
from twolane.core.request import SamplingParams
from twolane.engine.batch import Batch, pack
from twolane.engine.buckets import Gate, GridLimits, first_grid, plan_grid
from twolane.engine.config import EngineConfig, LoadProgress
from twolane.engine.cpu_forward import cpu_forward
from twolane.engine.loading import Loaded, load, stage
from twolane.engine.pages import PagePool
from twolane.engine.sampler import sample
from twolane.engine.sequence import Row, Sampled, Sequence
from twolane.engine.torch_forward import TorchForward

if TYPE_CHECKING:
    from twolane.engine.compiled_forward import CompiledForward

log = logging.getLogger(__name__)

# Below this many observed steps their shapes say little about the load.
_ENOUGH_STEPS = 1000
# Tokens of the warm-up's prompts, on both sides of the boundaries between two forms of a kernel.
_LONG_TOKENS = (512, 2048)


class Forward(Protocol):
    """A forward pass over a model and its pool: plain torch on CPU, kernels on a GPU."""

    def order(self, rows: Rows[Row]) -> list[int]:
        """The order in which to pack `rows`, decode rows first."""
        ...

    def run(self, rows: Rows[Row], batch: Batch, queue_depth: int = 0) -> torch.Tensor:
        """Computes a step packed in that order; logits [S, vocab_size] of its sampled rows."""
        ...


class Engine:
    """One loaded model with its pages.

    Attributes:
        fingerprint: what two workers compare before they exchange pages.
        spec: shapes and switches of the model.
        pool: books of the pages; the host allocates, matches, publishes and releases.
        kv: the pool's tensor [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim].
        eos_token_ids: ids that end an answer, by generation_config.json or else config.json.
        default_sampling: the model's own sampling defaults.
        graph_budget_bytes: memory set aside for captured graphs, 0 on CPU.
        ranks: connection to the other tensor-parallel ranks, or None.
    """

    def __init__(self, loaded: Loaded, config: EngineConfig) -> None:
        """Takes what `loading.load` built; use `Engine.load`."""
        self.fingerprint: ModelFingerprint = loaded.fingerprint
        self.spec = loaded.spec
        self.kv = loaded.kv
        self.eos_token_ids = loaded.generation.eos_token_ids
        self.default_sampling = loaded.generation.sampling
        self.pool = PagePool(self.kv.shape[0], self.fingerprint.page_tokens)
        self._model = loaded.model
        self.ranks = loaded.model.ranks
        self.graph_budget_bytes = loaded.graph_bytes
        self._graph_settings = config.graphs
        self._forward: Forward
        self._on_cpu: TorchForward | CompiledForward | None = None
        self._sample: Callable[[torch.Tensor, Rows[Sequence]], list[Sampled]] = sample
        if self.kv.device.type == "cuda":
            # Kernels are loaded only where they run.
            from twolane.engine.kernel_forward import KernelForward
            from twolane.engine.kernel_sampler import sample_on_device

            self._sample = sample_on_device
            self._forward = KernelForward(self._model, self.kv, self.fingerprint.max_model_len)
        else:
            # The copy follows sequences, which only the first rank sees.
            copy_bytes = 0 if self.ranks is not None else config.decode_copy_bytes
            self._on_cpu = cpu_forward(self._model, self.kv, copy_bytes, config.compiled)
            self._forward = self._on_cpu

    @classmethod
    def load(cls, config: EngineConfig, progress: Callable[[LoadProgress], None] | None = None) -> Engine:
        """Loads a model folder.

        Args:
            config: what to load and how much memory to take.
            progress: called with each stage's bytes and seconds.

        Raises:
            ConfigError: names the file or setting at fault and what to do; raised before weights are copied.
        """
        report = progress or _ignore
        loaded = load(config, report)
        with stage("compile", report):
            engine = cls(loaded, config)
        if engine.ranks is not None and not engine.ranks.is_first:
            return engine
        with stage("warm up", report):
            engine._warm_up()
            engine.capture_graphs()
        return engine

    @torch.inference_mode()
    def step(self, rows: Rows[Row], queue_depth: int = 0) -> list[Sampled | None]:
        """Computes any mix of prefill chunks and decode rows in one packed forward pass.

        Args:
            rows: distinct sequences; the pages of each must cover its chunk.
            queue_depth: requests that wait; with many a step takes a graph only where padding is small.

        Returns:
            One entry per row: the drawn token (the caller appends it) where `sample` was set, else None.

        Raises:
            ValueError: a row contradicts its sequence; nothing was computed.
        """
        if not rows:
            return []
        if self.ranks is not None and not self.ranks.is_first:
            raise RuntimeError("only rank 0 steps; this rank must call follow()")
        for row in rows:
            self._check(row)
        if len({id(row.sequence) for row in rows}) != len(rows):
            raise ValueError("a sequence has two rows in one step")
        self._use_device()
        batch = pack(rows, self._forward.order(rows), self.fingerprint.page_tokens)
        if int(batch.ids.max()) >= self.spec.vocab_size:
            raise ValueError(
                f"a token id is {int(batch.ids.max())}, the vocabulary has {self.spec.vocab_size}"
            )
        if self.ranks is not None:
            self.ranks.send(batch)
        logits = self._forward.run(rows, batch, queue_depth)
        for row in rows:
            row.sequence.n_computed += row.n_tokens
        results: list[Sampled | None] = [None] * len(rows)
        if batch.sampled:
            drawn = self._sample(logits, [rows[index].sequence for index in batch.sampled])
            for index, token in zip(batch.sampled, drawn, strict=True):
                results[index] = token
        elif self.kv.is_cuda:
            # Nothing was read back: without this a step would seem over once it is launched.
            torch.cuda.synchronize(self.kv.device)
        if self.ranks is not None:
            self.ranks.completed.advance()
        return results

    @torch.inference_mode()
    def follow(self) -> None:
        """Serves rank 0's steps until it closes; the only thing the other tensor-parallel ranks do."""
        if self.ranks is None or self.ranks.is_first:
            raise RuntimeError("follow() is for tensor-parallel ranks other than 0")
        self._use_device()
        while (batch := self.ranks.receive()) is not None:
            self._forward.run((), batch)
            if self.kv.is_cuda:
                # Launched is not completed: this rank's pages are read beside its steps.
                torch.cuda.synchronize(self.kv.device)
            self.ranks.completed.advance()

    def keep_alive(self) -> None:
        """Tells waiting ranks that rank 0 is idle, not gone; without other ranks it does nothing."""
        if self.ranks is not None:
            self.ranks.send(None)

    def close(self) -> None:
        """Releases the other ranks; without them it does nothing."""
        if self.ranks is not None:
            self.ranks.close()

    @torch.inference_mode()
    def capture_graphs(self) -> int:
        """Captures graphs for the steps run so far, or a first guess; returns the device memory they took.

        Called at load; hosts may call it again while idle, once the load is known. Does nothing on CPU. Where
        the device refuses, steps run kernel by kernel, and the log says so.
        """
        if self.graph_budget_bytes == 0 or self._on_cpu is not None:
            return 0
        self._use_device()
        from twolane.engine.graphs import CudaRecorder, nominal_costs
        from twolane.engine.kernel_forward import KernelForward

        assert isinstance(self._forward, KernelForward)
        settings = self._graph_settings
        table_pages = -(-self.fingerprint.max_model_len // self.fingerprint.page_tokens)
        costs = nominal_costs(self.spec, self.kv.element_size(), table_pages)
        limits = GridLimits(self.graph_budget_bytes, settings.max_rows, settings.max_short_tokens)
        observed = self._forward.observed.counts
        grid = (
            plan_grid(observed, limits, costs)
            if observed.total() >= _ENOUGH_STEPS
            else first_grid(limits, costs)
        )
        try:
            return self._forward.capture(grid, Gate(), CudaRecorder(self.kv.device))
        except RuntimeError:
            log.exception("no graphs: kernels of a step are launched one by one, which is slower")
            return 0

    @property
    def n_graphs(self) -> int:
        """Captured graphs; 0 on CPU."""
        return 0 if self._on_cpu is not None else getattr(self._forward, "n_graphs", 0)

    def watch_layers(self, on_layer: Callable[[int], None]) -> bool:
        """Reports each layer of a step, in the step's thread, once its keys and values are in the pages.

        Returns:
            Whether this engine can: one on a device can't, its host runs ahead of what is computed, nor can
            one of several ranks, which run apart within a step.
        """
        if self._on_cpu is None or self.ranks is not None:
            return False
        self._on_cpu.on_layer = on_layer
        return True

    def _use_device(self) -> None:
        """Kernels start on the calling thread's current device, which is the first one in a new thread."""
        if self.kv.is_cuda:
            torch.cuda.set_device(self.kv.device)

    def _warm_up(self) -> None:
        """Small steps, so that no request pays for lazy initialisation, on a GPU for no kernel's compiler."""
        page_tokens, longest = self.fingerprint.page_tokens, self.fingerprint.max_model_len
        self._rehearse([min(2, page_tokens)], 0)
        if self.kv.is_cuda:
            # Prompts of all sizes that kernels tell apart, then an answer behind one beside a short prompt.
            room = min(longest - 1, self.pool.free * page_tokens // 2)
            for tokens in _LONG_TOKENS:
                self._rehearse([min(room, tokens)], 0)
            self._rehearse([1, 2], min(room, _LONG_TOKENS[0]) - 1)
            self._rehearse([1], 0)

    def _rehearse(self, chunks: list[int], computed: int) -> None:
        """One step of rows with so many tokens, the first behind computed ones; each draws a token."""
        sequences = []
        try:
            for number, chunk in enumerate(chunks):
                length = chunk + (0 if number else computed)
                greedy = SamplingParams(max_tokens=1, temperature=0.0)
                page_ids = self.pool.allocate(-(-length // self.fingerprint.page_tokens))
                sequence = Sequence("warm up", [0] * length, length, greedy, length - chunk, page_ids)
                sequences.append(sequence)
            rows = zip(sequences, chunks, strict=True)
            self.step([Row(sequence, chunk, True) for sequence, chunk in rows])
        finally:
            for sequence in sequences:
                self.pool.release(sequence.page_ids)

    def _check(self, row: Row) -> None:
        sequence = row.sequence
        end = sequence.n_computed + row.n_tokens
        fault = ""
        if row.n_tokens < 1 or end > len(sequence.tokens):
            fault = f"chunk [{sequence.n_computed}, {end}) leaves its {len(sequence.tokens)} tokens"
        elif end > len(sequence.page_ids) * self.fingerprint.page_tokens:
            fault = f"its {len(sequence.page_ids)} pages don't cover {end} tokens"
        elif end > self.fingerprint.max_model_len:
            fault = f"{end} tokens exceed max_model_len {self.fingerprint.max_model_len}"
        elif row.sample and end != len(sequence.tokens):
            fault = f"it can't draw after token {end} of {len(sequence.tokens)}"
        if fault:
            raise ValueError(f"request {sequence.request_id}: {fault}")


def _ignore(progress: LoadProgress) -> None:
    del progress
