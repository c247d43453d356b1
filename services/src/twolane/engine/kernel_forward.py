"""The forward pass on Triton kernels: the path of CUDA engines, with captured graphs for decode and short
prefill.

Imported only by an engine on a CUDA device (or by tests under Triton's interpreter), never on CPU workers: it
loads the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

import torch

from twolane.engine.batch import Batch, decode_first
from twolane.engine.buckets import Gate, Grid, Kind, StepHistogram
from twolane.engine.graphs import GraphRunner, Recorder
from twolane.engine.model import Model
from twolane.engine.packed import product
from twolane.engine.rope import rotary_tables
from twolane.engine.sequence import Row
from twolane.engine.step_inputs import StepInputs, exact_inputs
from twolane.kernels.paged_decode_attention import paged_decode_attention
from twolane.kernels.paged_kv import KvPages
from twolane.kernels.paged_prefill_attention import paged_prefill_attention
from twolane.kernels.rms_norm import rms_norm
from twolane.kernels.rotary_page_write import HeadNorm, PageTarget, Rotation, rotary_page_write
from twolane.kernels.silu_mul import silu_mul


class KernelForward:
    """Forward pass over one model and its pool.

    Attributes:
        observed: shapes of the steps run so far, for planning the grid.
    """

    def __init__(self, model: Model, kv: torch.Tensor, max_model_len: int) -> None:
        """Takes the pool [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim]; captures nothing yet."""
        self.observed = StepHistogram()
        self._model, self._kv = model, kv
        self._n_kv_heads, self._page_tokens = kv.shape[3], kv.shape[4]
        self._table_pages = -(-max_model_len // self._page_tokens)
        self._pages = [(kv[:, layer, 0], kv[:, layer, 1]) for layer in range(kv.shape[1])]
        head_dim = model.spec.head_dim
        cos, sin = rotary_tables(model.spec.rope, head_dim, max_model_len, torch.float32)
        half = cos[:, : head_dim // 2].contiguous()
        self._rotation = Rotation(half.to(model.device), sin.to(model.device))
        self._graphs: GraphRunner | None = None

    def capture(self, grid: Grid, gate: Gate, recorder: Recorder) -> int:
        """Records a graph per bucket, replacing earlier ones; returns the device memory they took."""
        self._graphs = None
        graphs = GraphRunner(self.compute, recorder, gate)
        used_bytes = graphs.capture(grid, self._table_pages, self._kv)
        self._graphs = graphs
        return used_bytes

    @property
    def n_graphs(self) -> int:
        """Graphs there are to replay."""
        return 0 if self._graphs is None else self._graphs.n_graphs

    def order(self, rows: Rows[Row]) -> list[int]:
        """The order in which to pack `rows`."""
        return decode_first(rows)

    def run(self, rows: Rows[Row], batch: Batch, queue_depth: int = 0) -> torch.Tensor:
        """Logits [S, vocab_size] of the sampled rows, by a graph where one fits, else kernel by kernel."""
        n_rows, n_tokens = len(batch.order), len(batch.ids)
        if (
            self._graphs is not None
            and batch.n_decode < n_rows
            and not any(rows[index].sequence.n_generated for index in batch.order[: batch.n_decode])
        ):
            # Prompts with one token left to compute, beside longer ones: as short prompts they fit a graph.
            # Ranks that follow have neither graphs nor rows.
            batch = replace(batch, n_decode=0)
        if batch.n_decode in (0, n_rows):
            kind = Kind.DECODE if batch.n_decode else Kind.PREFILL
            self.observed.add(kind, n_rows, n_tokens)
            logits = self._graphs.run(kind, batch, queue_depth) if self._graphs is not None else None
            if logits is not None:
                return logits
        return self.compute(exact_inputs(batch, self._page_tokens, self._model.device))

    def compute(self, step: StepInputs) -> torch.Tensor:
        """Launches every kernel of one step; logits of the tokens `step.last`. Depends on shapes only."""
        model, spec = self._model, self._model.spec
        residual = model.embed(step.ids)
        hidden = rms_norm(residual, model.layers[0].input_norm, spec.norm_eps)
        last = step.last
        # One buffer for all layers, zeroed once: attention leaves padded rows unwritten.
        attended = hidden.new_zeros(hidden.shape[0], model.n_heads, spec.head_dim)
        for number, layer in enumerate(model.layers):
            self._attend(step, number, hidden, attended)
            if number == spec.n_layers - 1 and last.shape[0] == 0:
                # A chunk in the middle of a prompt: its keys and values are stored, nothing else is wanted.
                return hidden.new_empty(0, spec.vocab_size)
            out = model.project_out(attended.flatten(1), layer)
            hidden = rms_norm(out, layer.mlp_norm, spec.norm_eps, residual=residual)
            gate_up = product(hidden, layer.gate_up, layer.gate_up_bias)
            out = model.project_down(silu_mul(gate_up), layer)
            if number < spec.n_layers - 1:
                following = model.layers[number + 1].input_norm
                hidden = rms_norm(out, following, spec.norm_eps, residual=residual)
        summed = residual.index_select(0, last)
        hidden = rms_norm(out.index_select(0, last), model.final_norm, spec.norm_eps, residual=summed)
        return model.logits(hidden)

    def _attend(self, step: StepInputs, number: int, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Projects, rotates, stores keys and values, attends into `out` [T, Hq, D]."""
        layer = self._model.layers[number]
        spec, n_heads, n_kv_heads = self._model.spec, self._model.n_heads, self._n_kv_heads
        fused = product(hidden, layer.qkv, layer.qkv_bias)
        heads = fused.view(fused.shape[0], n_heads + 2 * n_kv_heads, spec.head_dim)
        query, key, value = torch.split(heads, [n_heads, n_kv_heads, n_kv_heads], dim=1)
        norm = None
        if layer.qk_norm is not None:
            norm = HeadNorm(layer.qk_norm[0], layer.qk_norm[-1], spec.norm_eps)
        target = PageTarget(*self._pages[number], step.slots)
        query = rotary_page_write((query, key, value), self._rotation, step.positions, target, norm=norm)
        n_decode, window = step.n_decode, spec.windows[number]
        if n_decode:
            kv = KvPages(*self._pages[number], step.table[:n_decode], step.contexts[:n_decode])
            paged_decode_attention(query[:n_decode], kv, window_tokens=window, out=out[:n_decode])
        if step.contexts.shape[0] > n_decode:
            kv = KvPages(*self._pages[number], step.table[n_decode:], step.contexts[n_decode:])
            paged_prefill_attention(
                query[n_decode:], kv, step.starts, window_tokens=window, out=out[n_decode:]
            )
