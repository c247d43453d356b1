"""The copy of the prefix index answers as a plain table of sets would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.router.prefix_index import PrefixIndex

PAGES = [bytes([number]) * 16 for number in range(6)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "drop"]),
        st.sampled_from("abc"),
        st.lists(st.sampled_from(PAGES), max_size=6),
    ),
    max_size=20,
)


@given(steps=STEPS, prompt=st.lists(st.sampled_from(PAGES), max_size=6, unique=True))
def test_it_agrees_with_a_set_per_worker(
    steps: list[tuple[str, str, list[bytes]]], prompt: list[bytes]
) -> None:
    """After any changes, each worker's leading cached pages of any prompt are right."""
    index, plain = PrefixIndex(), dict[str, set[bytes]]()
    for kind, worker, pages in steps:
        if kind == "add":
            index.add(worker, pages)
            plain.setdefault(worker, set()).update(pages)
        elif kind == "remove":
            index.remove(worker, pages)
            plain.get(worker, set()).difference_update(pages)
        else:
            index.drop(worker)
            plain.pop(worker, None)
    expected = {}
    for worker, cached in plain.items():
        count = 0
        while count < len(prompt) and prompt[count] in cached:
            count += 1
        if count:
            expected[worker] = count
    assert index.cached_pages(prompt) == expected
    assert len(index) == sum(map(len, plain.values()))


def test_clearing_forgets_everything() -> None:
    """A new snapshot begins from nothing."""
    index = PrefixIndex()
    index.add("a", PAGES)
    index.clear()
    assert index.cached_pages(PAGES) == {}
    index.add("b", PAGES[:2])
    assert index.cached_pages(PAGES) == {"b": 2}
