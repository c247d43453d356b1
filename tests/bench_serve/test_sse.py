"""Events come out whole, however the bytes of the stream are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.bench import sse
from twolane.bench.sse import SseParser
from twolane.core.errors import Internal


@given(
    events=st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1), max_size=8),
    cuts=st.lists(st.integers(1, 9)),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_any_cut_of_the_stream_gives_the_same_events(
    events: Sequence[str], cuts: list[int], end: bytes
) -> None:
    """Characters of several bytes and line ends may be torn apart."""
    stream = b"".join(b"data: " + event.encode() + end + end for event in events)
    parser, found = SseParser(), []
    for size in [*cuts, len(stream) or 1]:
        found += parser.feed(stream[:size])
        stream = stream[size:]
    assert found == [event.encode() for event in events]


def test_comments_and_other_fields_are_skipped() -> None:
    """Servers keep connections alive with comments."""
    assert SseParser().feed(b": ping\n\nevent: x\ndata: 1\nid: 3\n\n") == [b"1"]


def test_lines_of_one_event_are_joined() -> None:
    """As the format says."""
    assert SseParser().feed(b"data: a\ndata: b\n\n") == [b"a\nb"]


def test_an_event_without_its_end_is_held_back() -> None:
    """Half of a JSON object helps nobody."""
    parser = SseParser()
    assert parser.feed(b'data: {"a"') == []
    assert parser.feed(b": 1}\n\n") == [b'{"a": 1}']


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded when an address serves something else."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(Internal, match="no stream of events"):
        SseParser().feed(b"x" * 101)
