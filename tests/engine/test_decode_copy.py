"""The dense copy of running decode rows follows every way rows come and go."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from twolane.core.request import SamplingParams
from twolane.engine.batch import decode_first, pack
from twolane.engine.decode_copy import DecodeCopy
from twolane.engine.sequence import Row, Sequence
from twolane.engine.torch_plan import PageLayout

SAMPLING = SamplingParams(max_tokens=1)
LAYERS, HEADS, PAGE, DIM = 2, 2, 4, 8


class Pages:
    """A pool of random pages and a copy over it; plays the layers' part in a step."""

    def __init__(
        self, limit_bytes: int = 1 << 24, group: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        self.kv = torch.randn(200, LAYERS, 2, HEADS, PAGE, DIM).to(dtype)
        self.group = group
        self.copy = DecodeCopy(self.kv, PageLayout(LAYERS, HEADS, PAGE), limit_bytes)
        self._page = 0

    def sequence(self, n_tokens: int) -> Sequence:
        """A sequence with `n_tokens` computed and pages for 30 more."""
        n_pages = (n_tokens + 30) // PAGE + 1
        pages = [(self._page + i) * 3 % 200 for i in range(n_pages)]
        self._page += n_pages
        return Sequence("r", [0] * (n_tokens + 30), 1, SAMPLING, n_tokens, pages)

    def attention(self, sequence: Sequence, layer: int, query: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """One query [HEADS * group, DIM] over what the pages hold, in float64."""
        pages = self.kv[sequence.page_ids, layer].double()
        keys, values = pages.permute(1, 2, 0, 3, 4).reshape(2, HEADS, -1, DIM)[:, :, :n_tokens]
        folded = query.double().view(HEADS, self.group, DIM)
        shares = (folded @ keys.transpose(1, 2) / DIM**0.5).softmax(-1)
        attended: torch.Tensor = shares @ values
        return attended.view(-1, DIM)

    def step(self, sequences: list[Sequence], others: list[Row] | None = None) -> bool:
        """One step; checks attention over the copy against the pages. False when the copy declined."""
        rows = [Row(sequence, 1, True) for sequence in sequences] + (others or [])
        order = self.copy.arrange(rows)
        if order is None:
            self.advance(sequences)
            return False
        assert sorted(order) == sorted(range(len(sequences)))
        rest = [index for index in decode_first(rows) if rows[index].n_tokens > 1]
        batch = pack(rows, order + rest, PAGE)
        use = self.copy.prepare(rows, batch, HEADS * self.group)
        for layer in range(LAYERS):
            new = torch.randn(len(order), 2 * HEADS, DIM).to(self.kv.dtype)
            query = torch.randn(len(order), HEADS * self.group, DIM).to(self.kv.dtype)
            found = self.copy.attend(use, layer, query, new)
            for place, index in enumerate(order):
                sequence = rows[index].sequence
                at = sequence.n_computed
                for side in range(2):
                    mine = new[place, side * HEADS : (side + 1) * HEADS]
                    self.kv[sequence.page_ids[at // PAGE], layer, side, :, at % PAGE] = mine
                expected = self.attention(sequence, layer, query[place], at + 1)
                tolerance = 1e-5 if self.kv.dtype is torch.float32 else 3e-2
                torch.testing.assert_close(
                    found[place].double(), expected.flatten(), rtol=tolerance, atol=tolerance
                )
        self.copy.commit(use)
        self.advance(sequences)
        return True

    def advance(self, sequences: list[Sequence]) -> None:
        """What the engine does after a step."""
        for sequence in sequences:
            sequence.n_computed += 1


@pytest.mark.parametrize(("group", "dtype"), [(1, torch.float32), (5, torch.float32), (2, torch.bfloat16)])
@pytest.mark.parametrize("seed", range(4))
def test_rows_come_and_go_in_any_order(seed: int, group: int, dtype: torch.dtype) -> None:
    """Joins, departures, absences and recomputation, beside prefill rows; few query heads and many."""
    rng, pages = random.Random(seed), Pages(group=group, dtype=dtype)
    known = [pages.sequence(rng.randint(1, 40)) for _ in range(7)]
    prefill = [Row(replace_computed(pages.sequence(0), 0), 9, False)]
    used = 0
    for _ in range(25):
        running = rng.sample(known, rng.randint(1, len(known)))
        used += pages.step(running, prefill if rng.random() < 0.3 else [])
        if rng.random() < 0.2:
            # Preempted and recomputed elsewhere: same object, other pages, fewer tokens.
            victim = rng.choice(known)
            fresh = pages.sequence(rng.randint(1, 20))
            victim.n_computed, victim.page_ids = fresh.n_computed, fresh.page_ids
    assert used > 10


def replace_computed(sequence: Sequence, n_computed: int) -> Sequence:
    """The same sequence with another number of computed tokens."""
    sequence.n_computed = n_computed
    return sequence


def test_the_copy_grows_with_contexts_and_rows() -> None:
    """Past its capacity in either direction everything is fetched anew."""
    pages = Pages()
    short, long = pages.sequence(250), pages.sequence(240)
    for _ in range(12):
        assert pages.step([short, long])
    assert pages.step([short, long, pages.sequence(200)])


def test_the_copy_declines_beyond_its_limit_and_for_uneven_rows() -> None:
    """Grouped fetching serves those steps."""
    pages = Pages(limit_bytes=10_000)
    assert not pages.step([pages.sequence(30)])
    uneven = Pages()
    assert not uneven.step([uneven.sequence(n) for n in (300, 2, 3, 4)])
    assert uneven.copy.arrange([Row(replace_computed(uneven.sequence(5), 0), 5, True)]) is None


def test_a_long_answer_that_ended_keeps_no_short_ones_out() -> None:
    """Room for one long context would, times many rows, be beyond the limit: the copy starts anew."""
    pages = Pages(limit_bytes=LAYERS * 2 * HEADS * DIM * 4 * 1024)
    assert pages.step([pages.sequence(300)])
    assert pages.step([pages.sequence(20) for _ in range(4)])


def test_a_first_token_without_context_is_served(models: Any) -> None:
    """A prompt of one token is a decode row with nothing to fetch."""
    engine = models.engine("llama")
    greedy = replace(SAMPLING, temperature=0.0)
    sequence = Sequence("r", [7], 1, greedy, page_ids=engine.pool.allocate(1))
    (drawn,) = engine.step([Row(sequence, 1, True)])
    engine.pool.release(sequence.page_ids)
    with torch.no_grad():
        expected = models.oracle("llama")(torch.tensor([[7]])).logits[0, -1].argmax()
    assert drawn.token_id == expected
