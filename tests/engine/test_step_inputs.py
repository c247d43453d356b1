"""Inputs of captured graphs: what is rehearsed before capture, and that nothing of it or an earlier step
stays."""

from __future__ import annotations

import pytest
import torch

from twolane.core.request import SamplingParams
from twolane.engine.batch import decode_first, pack
from twolane.engine.buckets import Bucket, Kind
from twolane.engine.sequence import Row, Sequence
from twolane.engine.step_inputs import StaticInputs, exact_inputs

CPU = torch.device("cpu")
PAGE_TOKENS, TABLE_PAGES, N_PAGES = 4, 20, 37
BUCKETS = [Bucket(Kind.DECODE, 4, 4), Bucket(Kind.PREFILL, 3, 20), Bucket(Kind.PREFILL, 8, 8)]


def rows(kind: Kind, count: int) -> list[Row]:
    """Decode rows behind 9 tokens, or prompts of 2, 3 and so on."""
    made = []
    for number in range(count):
        n_tokens = 10 if kind is Kind.DECODE else 2 + number
        n_computed = 9 if kind is Kind.DECODE else 0
        pages = [number * 3 + place for place in range(3)]
        tokens = list(range(1, n_tokens + 1))
        sequence = Sequence("r", tokens, n_tokens, SamplingParams(max_tokens=4), n_computed, pages)
        made.append(Row(sequence, n_tokens - n_computed, True))
    return made


@pytest.mark.parametrize("bucket", BUCKETS, ids=["decode", "prefill", "one token each"])
def test_a_rehearsed_step_has_work_for_every_row_and_writes_nothing(bucket: Bucket) -> None:
    """On an empty step all launch configurations are equally fast; pages must stay as they are."""
    static = StaticInputs(bucket, TABLE_PAGES, PAGE_TOKENS, CPU)
    static.rehearse(N_PAGES)
    step = static.inputs
    assert int(step.slots.max()) < 0
    assert int(step.contexts.min()) >= 1
    if bucket.kind is Kind.DECODE:
        assert int(step.contexts.min()) > (TABLE_PAGES - 1) * PAGE_TOKENS
        assert set(step.table.flatten().tolist()) == set(range(N_PAGES))
    else:
        assert step.starts[-1] == bucket.n_tokens
        assert torch.equal(step.starts.diff(), step.contexts)
    assert 0 <= int(step.table.min()) <= int(step.table.max()) < N_PAGES
    assert int(step.positions.max()) == int(step.contexts.max()) - 1


@pytest.mark.parametrize("bucket", BUCKETS[:2], ids=["decode", "prefill"])
def test_a_filled_step_equals_the_exact_one_and_its_padding_is_inert(bucket: Bucket) -> None:
    """Also after a rehearsal and a larger step."""
    static = StaticInputs(bucket, TABLE_PAGES, PAGE_TOKENS, CPU)
    static.rehearse(N_PAGES)
    for count in (3, 2):
        given = rows(bucket.kind, count)
        batch = pack(given, decode_first(given), PAGE_TOKENS)
        static.fill(batch)
        exact, padded = exact_inputs(batch, PAGE_TOKENS, CPU), static.inputs
        n_tokens, width = len(batch.ids), batch.table.shape[1]
        assert torch.equal(padded.slots[:n_tokens], exact.slots)
        assert (padded.slots[n_tokens:] == -1).all()
        for name in ("ids", "positions"):
            assert torch.equal(getattr(padded, name)[:n_tokens], getattr(exact, name))
        assert torch.equal(padded.contexts[:count], exact.contexts)
        assert not padded.contexts[count:].any()
        assert torch.equal(padded.last[:count], exact.last)
        assert torch.equal(padded.table[:count, :width], exact.table)
        if bucket.kind is Kind.PREFILL:
            assert torch.equal(padded.starts[: count + 1], exact.starts)
            assert (padded.starts[count + 1 :] == n_tokens).all()
