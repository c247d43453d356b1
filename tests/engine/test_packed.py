"""Packed matrices multiply like plain ones, whatever the number of rows, and their rows can be read back."""

from __future__ import annotations

import pytest
import torch

from twolane.engine import packed
from twolane.engine.packed import PackedRows, can_pack, pack, product


@pytest.mark.skipif(not can_pack(torch.float32), reason="torch was built without oneDNN")
@pytest.mark.parametrize(("n_out", "n_in"), [(64, 64), (199, 48), (704, 256), (5, 33)])
@pytest.mark.parametrize("n_rows", [1, 2, 17, 300])
def test_products_agree_with_plain_ones(n_out: int, n_in: int, n_rows: int) -> None:
    """With and without a bias, for one row and for a long prompt."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(n_out, n_in), torch.randn(n_out), torch.randn(n_rows, n_in)
    expected = x.double() @ weight.double().t()
    found = product(x, pack(weight)).double(), product(x, pack(weight), bias).double() - bias.double()
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not can_pack(torch.float32), reason="torch was built without oneDNN")
@pytest.mark.parametrize(("n_out", "n_in"), [(64, 64), (199, 48), (70, 33), (2100, 36)])
def test_rows_of_a_packed_matrix_are_those_of_the_plain_one(n_out: int, n_in: int) -> None:
    """A tied embedding is read from the packed head; sizes that don't fill a block too."""
    weight = torch.randn(n_out, n_in)
    rows = PackedRows.of(pack(weight), weight)
    assert rows is not None
    ids = torch.randint(0, n_out, (40,))
    assert torch.equal(rows.select(ids), weight[ids])


def test_other_contents_and_types_are_not_taken_for_the_known_form() -> None:
    """Then a tied embedding stays beside its head, plain."""
    weight = torch.randn(128, 64)
    assert PackedRows.of(pack(weight + 1), weight) is None
    if can_pack(torch.bfloat16):
        half = weight.bfloat16()
        assert PackedRows.of(pack(half), half) is None


def test_a_build_that_computes_something_else_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine then keeps plain matrices."""
    monkeypatch.setattr(packed, "pack", lambda weight: weight * 1.5)
    can_pack.cache_clear()
    try:
        assert not can_pack(torch.float32)
        assert not can_pack(torch.float16)
    finally:
        can_pack.cache_clear()
