"""Fingerprints say in what two models differ."""

from __future__ import annotations

from dataclasses import replace

from twolane.core.model import ModelFingerprint

ONE = ModelFingerprint(
    model="m",
    architecture="llama",
    vocab_size=100,
    tokenizer_sha256="t",
    weights_sha256="w",
    n_layers=2,
    n_kv_heads=3,
    head_dim=8,
    page_tokens=16,
    kv_dtype="float32",
    max_model_len=512,
)


def test_equal_models_differ_in_nothing() -> None:
    """They may exchange pages."""
    assert ONE.differences(replace(ONE)) == []


def test_every_difference_is_named_with_both_values() -> None:
    """This one's first."""
    other = replace(ONE, page_tokens=32, kv_dtype="bfloat16")
    assert ONE.differences(other) == ["page_tokens 16 != 32", "kv_dtype 'float32' != 'bfloat16'"]


def test_a_page_holds_keys_and_values_of_all_layers() -> None:
    """layers × 2 × heads × tokens × dim."""
    assert ONE.page_elements == 2 * 2 * 3 * 16 * 8
