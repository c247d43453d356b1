"""apply_logit_rules against its reference: penalties by slot, grammar masks, both, odd vocabularies,
refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.logit_rules import Penalties, apply_logit_rules
from twolane.kernels.logit_rules_reference import logit_rules_reference


def _penalties(vocab: int, device: torch.device) -> Penalties:
    return Penalties(
        slot=torch.tensor([2, 0, -1], device=device),
        repetition=torch.tensor([1.3, 1.0, 2.0], device=device),
        presence=torch.tensor([0.5, -1.0, 1.0], device=device),
        frequency=torch.tensor([0.25, 0.5, 1.0], device=device),
        in_prompt=torch.randint(0, 2, (4, vocab), dtype=torch.uint8, device=device),
        output_counts=torch.randint(0, 3, (4, vocab), dtype=torch.int32, device=device),
    )


def _allowed(vocab: int, device: torch.device) -> torch.Tensor:
    words = torch.randint(-(2**31), 2**31, (3, (vocab + 31) // 32), device=device)
    return words.to(torch.int32)


@pytest.mark.parametrize("vocab", [1, 31, 100, 1025])
@pytest.mark.parametrize("rules", ["penalties", "mask", "both"])
def test_rules_match_the_reference(
    device: torch.device, assert_near: Callable[..., None], dtype: torch.dtype, vocab: int, rules: str
) -> None:
    """Every combination, every dtype; the third row has no slot and keeps its logits but for the mask."""
    logits = (torch.randn(3, vocab, device=device) * 3).to(dtype)
    penalties = None if rules == "mask" else _penalties(vocab, device)
    allowed = None if rules == "penalties" else _allowed(vocab, device)
    expected = logit_rules_reference(logits, penalties=penalties, allowed=allowed)
    apply_logit_rules(logits, penalties=penalties, allowed=allowed)
    assert_near(logits, expected)


def test_highest_bit_of_a_mask_word_counts(device: torch.device) -> None:
    """int32 words are signed: bit 31 must be read like the others."""
    logits = torch.zeros(1, 64, device=device)
    allowed = torch.tensor([[-(2**31), 1]], dtype=torch.int32, device=device)
    apply_logit_rules(logits, allowed=allowed)
    assert (logits[0] == 0).nonzero().flatten().tolist() == [31, 32]


def test_no_rule_changes_nothing(device: torch.device) -> None:
    """Without rules there is no launch."""
    logits = torch.randn(2, 10, device=device)
    before = logits.clone()
    apply_logit_rules(logits)
    assert torch.equal(logits, before)


def test_bad_input_is_refused(device: torch.device) -> None:
    """Mask width and table sizes are named."""
    logits = torch.zeros(3, 100, device=device)
    with pytest.raises(ValueError, match=r"allowed must have shape \[3, 4\]"):
        apply_logit_rules(logits, allowed=torch.zeros(3, 5, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match=r"in_prompt must have shape \[4, 100\]"):
        apply_logit_rules(logits, penalties=_penalties(99, device))
