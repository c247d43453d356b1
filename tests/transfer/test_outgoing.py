"""Whatever the order in which chunks and layers get ready, each layer of each page goes exactly once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from twolane.transfer.outgoing import Outgoing, Portion
from twolane.v1 import transfer_pb2 as pb

N_LAYERS, PAGE_TOKENS = 5, 4

# A chunk: its tokens, and how many layers are reported while it runs.
chunks = st.lists(
    st.tuples(st.integers(1, 13), st.lists(st.integers(1, N_LAYERS - 1), max_size=3)), min_size=1, max_size=6
)


@given(chunks=chunks, skipped=st.integers(0, 3), lost=st.booleans())
def test_every_layer_of_every_page_goes_once(
    chunks: list[tuple[int, list[int]]], skipped: int, lost: bool
) -> None:
    """Chunks of any size with layers ahead of them; a report that comes twice or late changes nothing."""
    prompt = sum(tokens for tokens, _ in chunks)
    n_pages = -(-prompt // PAGE_TOKENS)
    skipped = min(skipped, prompt // PAGE_TOKENS)
    outgoing = Outgoing("r", PAGE_TOKENS, N_LAYERS, page_ids=range(100, 100 + n_pages))
    outgoing.offer = pb.PageOffer(page_ids=range(skipped, n_pages), skip_tokens=skipped * PAGE_TOKENS)
    outgoing.sent_pages = skipped
    portions: list[Portion] = []
    done = 0
    for tokens, layers in chunks:
        for each in layers:
            portions += outgoing.take_ahead((done + tokens) // PAGE_TOKENS, each)
        done += tokens
        if not lost or done == prompt:
            outgoing.ready_pages = done // PAGE_TOKENS
            portions += outgoing.take_ready()
    outgoing.ready_pages = n_pages
    portions += outgoing.take_ready()
    sent: Counter[tuple[int, int]] = Counter()
    for portion in portions:
        assert [source - 100 for source in portion.source_ids] == list(portion.target_ids)
        layers_sent = range(portion.layers.first, portion.layers.first + portion.layers.count)
        sent.update((page, layer) for page in portion.target_ids for layer in layers_sent)
    wanted = {(page, layer) for page in range(skipped, n_pages) for layer in range(N_LAYERS)}
    assert sent == Counter(wanted)
    assert list(outgoing.take_ready()) == []
