"""Plain-torch definition of the page copies, for tests and benches; also a usable path on any device."""

from __future__ import annotations

import torch


def gather_pages_reference(
    pool: torch.Tensor, page_ids: torch.Tensor, *, first_layer: int = 0, n_layers: int | None = None
) -> torch.Tensor:
    """The given pages' layers as one contiguous buffer; ids must be valid."""
    last = pool.shape[1] if n_layers is None else first_layer + n_layers
    return pool[:, first_layer:last].index_select(0, page_ids.long()).contiguous()


def scatter_pages_reference(
    staging: torch.Tensor, pool: torch.Tensor, page_ids: torch.Tensor, *, first_layer: int = 0
) -> None:
    """Write the buffer into the given pages' layers; negative ids are skipped."""
    keep = page_ids >= 0
    pool[:, first_layer : first_layer + staging.shape[1]].index_copy_(0, page_ids[keep].long(), staging[keep])


def copy_pages_reference(pool: torch.Tensor, source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    """Copy pages inside the pool; pairs with a negative id are skipped."""
    keep = (source_ids >= 0) & (target_ids >= 0)
    pool.index_copy_(0, target_ids[keep].long(), pool.index_select(0, source_ids[keep].long()))
