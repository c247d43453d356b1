"""The peak computed with arrays is the one that the rows give one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.policies.decode import DecodeRow, DecodeSettings, PastFuture
from twolane.policies.lengths import LengthHistory
from twolane.policies.sampled_peaks import SampledPeaks

ROWS = st.lists(
    st.builds(
        DecodeRow,
        st.just("r"),
        st.integers(1, 5000),
        st.integers(0, 600),
        st.integers(1, 600),
        st.floats(0.0, 1.0, exclude_max=True),
    ),
    min_size=1,
    max_size=40,
)


@given(ROWS, st.lists(st.integers(1, 700), max_size=60), st.integers(0, 4))
def test_both_ways_agree(rows: list[DecodeRow], lengths: list[int], sample: int) -> None:
    """Also for answers beyond their limit, and without a known length above."""
    history = LengthHistory.start(600, 20)
    for length in lengths:
        history = history.observe(length)
    one_by_one = PastFuture(DecodeSettings())._peak(rows, history, sample)
    assert SampledPeaks(rows, history).peak(sample * 0.6180339887498949) == one_by_one


def test_nothing_known_is_nothing_left() -> None:
    """An answer at its limit with no longer one known stays as it is."""
    history = LengthHistory(4, (5,), (5,))
    row = DecodeRow("r", 30, 9, 9, 0.5)
    assert SampledPeaks([row], history).peak(0.0) == 30
