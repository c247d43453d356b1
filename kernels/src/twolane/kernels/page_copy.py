"""Moves whole pages, or a range of their layers, between the pool and a contiguous staging buffer, or inside
the pool.

Called by the engine for the transfer of pages between workers (gather before a push, scatter on landing) and
for copying a shared page before writing to it. Bytes are copied as they are; the limit is memory bandwidth.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config


# A form per number of pages or place of their list would stall serving with compilation.
@triton.jit(
    do_not_specialize=["n_source_pages", "n_target_pages"],
    do_not_specialize_on_alignment=["source_ids_ptr", "target_ids_ptr"],
)
def _page_copy_kernel(
    source_ptr,
    target_ptr,
    source_ids_ptr,
    target_ids_ptr,
    n_source_pages,
    n_target_pages,
    n_words,
    stride_source,
    stride_target,
    SOURCE_BY_ID: tl.constexpr,
    TARGET_BY_ID: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    blocks_per_page = tl.cdiv(n_words, BLOCK_WORDS)
    index = (tl.program_id(0) // blocks_per_page).to(tl.int64)
    words = (tl.program_id(0) % blocks_per_page) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
    source = index
    if SOURCE_BY_ID:
        source = tl.load(source_ids_ptr + index).to(tl.int64)
    target = index
    if TARGET_BY_ID:
        target = tl.load(target_ids_ptr + index).to(tl.int64)
    # Negative ids pad a list of fixed length; an id past the end would touch foreign memory.
    valid = (source >= 0) & (source < n_source_pages) & (target >= 0) & (target < n_target_pages)
    # The interpreter can't combine a block mask with a scalar one, so an invalid pair has no words instead.
    mask = words < tl.where(valid, n_words, 0)
    raw = tl.load(source_ptr + source * stride_source + words, mask=mask, other=0)
    tl.store(target_ptr + target * stride_target + words, raw, mask=mask)


def gather_pages(
    pool: torch.Tensor,
    page_ids: torch.Tensor,
    *,
    first_layer: int = 0,
    n_layers: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Copy layers ``first_layer`` … of the given pages into one contiguous buffer, in the order of the ids.

    pool: [n_pages, n_layers, 2, n_kv_heads, page_tokens, head_dim], each page contiguous, any dtype;
    page_ids: [n] int32 or int64 on the pool's device, negative ones leave their place in the buffer
    untouched; out: [n, layers, 2, n_kv_heads, page_tokens, head_dim], contiguous, of the pool's dtype.
    Ids are not checked against n_pages on the host (that would wait for the device): ids past the end are
    skipped. Raises ValueError on bad shapes, dtypes, strides or layers.
    """
    layers = _layer_range("gather_pages", pool, first_layer, n_layers)
    window = pool[:, layers.start : layers.stop]
    shape = (page_ids.shape[0], *window.shape[1:])
    if out is None:
        out = torch.empty(shape, dtype=pool.dtype, device=pool.device)
    launch.require_shape("gather_pages", "out", out, shape)
    launch.require_contiguous("gather_pages", "out", out)
    _copy("gather_pages", (window, page_ids), (out, None))
    return out


def scatter_pages(
    staging: torch.Tensor, pool: torch.Tensor, page_ids: torch.Tensor, *, first_layer: int = 0
) -> None:
    """Write a buffer made by ``gather_pages`` into layers ``first_layer`` … of the given pages, in place.

    Shapes as in ``gather_pages``; negative and too large ids are skipped; ids must be distinct. Raises
    ValueError.
    """
    launch.require_shape("scatter_pages", "staging", staging, (page_ids.shape[0], None, *pool.shape[2:]))
    launch.require_contiguous("scatter_pages", "staging", staging)
    layers = _layer_range("scatter_pages", pool, first_layer, staging.shape[1])
    _copy("scatter_pages", (staging, None), (pool[:, layers.start : layers.stop], page_ids))


def copy_pages(pool: torch.Tensor, source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    """Copy whole pages inside the pool; pairs with a negative id are skipped.

    No page may be a target twice, or a source and a target in one call. Raises ValueError on bad shapes or
    dtypes.
    """
    _layer_range("copy_pages", pool, 0, None)
    launch.require_shape("copy_pages", "target_ids", target_ids, source_ids.shape)
    _copy("copy_pages", (pool, source_ids), (pool, target_ids))


Side = tuple[torch.Tensor, torch.Tensor | None]


def _layer_range(op: str, pool: torch.Tensor, first_layer: int, n_layers: int | None) -> range:
    launch.require_shape(op, "pool", pool, (None,) * 6)
    if not pool[0:1].is_contiguous():
        raise ValueError(
            f"{op}: each page of the pool must be contiguous, strides are {tuple(pool.stride())}"
        )
    count = pool.shape[1] - first_layer if n_layers is None else n_layers
    if first_layer < 0 or count < 1 or first_layer + count > pool.shape[1]:
        last = first_layer + count - 1
        raise ValueError(f"{op}: the pool has {pool.shape[1]} layers, not layers {first_layer} to {last}")
    return range(first_layer, first_layer + count)


def _copy(op: str, source: Side, target: Side) -> None:
    """Check what both sides share, view them as words, and launch."""
    launch.require_runnable("page_copy", source[0], target[0], source[1], target[1])
    if source[0].dtype != target[0].dtype:
        raise ValueError(f"{op}: pool is {target[0].dtype} but the buffer is {source[0].dtype}")
    for ids in (source[1], target[1]):
        if ids is not None:
            launch.require_vector(op, "page ids", ids, ids.shape[0], launch.INDEX_DTYPES)
    n_copies = next(ids.shape[0] for ids in (source[1], target[1]) if ids is not None)
    if n_copies == 0:
        return
    word = _word_dtype(op, source[0], target[0])
    words = (_as_words(source[0], word), source[1]), (_as_words(target[0], word), target[1])

    def make_trial() -> tuning.Trial:
        # Repeating the same copy writes the same bytes: no scratch is needed.
        return lambda chosen: _launch(chosen, *words, n_copies)

    shape_class = (launch.next_power_of_2(words[0][0].shape[1]), launch.next_power_of_2(n_copies))
    chosen = tuning.choose("page_copy", shape_class, candidates(), make_trial, source[0].device)
    _launch(chosen, *words, n_copies)


def _word_dtype(op: str, *sides: torch.Tensor) -> torch.dtype:
    """int64, or int32 where the runs, strides or offsets of either side aren't multiples of eight bytes."""
    sizes = [
        elements * pages.element_size()
        for pages in sides
        for elements in (pages[0:1].numel(), pages.stride(0), pages.storage_offset())
    ]
    for dtype, size in ((torch.int64, 8), (torch.int32, 4)):
        if all(length % size == 0 for length in sizes):
            return dtype
    raise ValueError(f"{op}: one layer of a page must be a multiple of 4 bytes, this range has {sizes[0]}")


def _as_words(pages: torch.Tensor, word: torch.dtype) -> torch.Tensor:
    """[n, words] view of pages whose layers are contiguous."""
    flat = pages.as_strided((pages.shape[0], pages[0:1].numel()), (pages.stride(0), 1))
    return flat.view(word)


def candidates() -> list[LaunchConfig]:
    """Launch configurations worth measuring, the default first."""
    return [
        config(warps, BLOCK_WORDS=words)
        for words, warps in [(1024, 4), (2048, 4), (2048, 8), (4096, 8), (512, 4)]
    ]


def _launch(chosen: LaunchConfig, source: Side, target: Side, n_copies: int) -> None:
    n_words = source[0].shape[1]
    _page_copy_kernel[(triton.cdiv(n_words, chosen.blocks["BLOCK_WORDS"]) * n_copies,)](
        source[0],
        target[0],
        source[1],
        target[1],
        source[0].shape[0],
        target[0].shape[0],
        n_words,
        source[0].stride(0),
        target[0].stride(0),
        SOURCE_BY_ID=source[1] is not None,
        TARGET_BY_ID=target[1] is not None,
        **chosen.options(),
    )
