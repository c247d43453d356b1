"""The order in which ModelDeployments are looked at, under times that the test chooses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.operator.queue import LONGEST_BACKOFF_S, WorkQueue

A, B = ("ns", "a"), ("ns", "b")


def test_a_burst_of_events_is_one_look() -> None:
    """Thirty pods that become ready must not be thirty looks."""
    queue = WorkQueue(spacing_s=0.2)
    for _ in range(30):
        queue.add(A, 10.0)
    assert queue.take(10.0) == A
    assert queue.take(10.0) is None


def test_an_object_is_never_looked_at_twice_at_a_time() -> None:
    """What happens meanwhile is looked at afterwards."""
    queue = WorkQueue(spacing_s=0.2)
    queue.add(A, 0.0)
    assert queue.take(0.0) == A
    queue.add(A, 0.1)
    assert queue.take(5.0) is None
    queue.done(A, 5.0, again_s=300.0)
    assert queue.take(5.0) == A


def test_the_one_that_waited_longest_is_first() -> None:
    """No object starves another."""
    queue = WorkQueue()
    queue.add(B, 0.0)
    queue.add(A, 1.0)
    assert (queue.take(2.0), queue.take(2.0)) == (B, A)


def test_failures_are_pauses_that_double_and_events_do_not_shorten_them() -> None:
    """A full API server gets the time to recover that it asked for."""
    queue = WorkQueue()
    now, pauses = 0.0, []
    for _ in range(10):
        queue.add(A, now)
        assert queue.take(now) == A
        pause = queue.failed(A, now)
        queue.add(A, now + pause / 2)
        assert queue.take(now + pause * 0.99) is None
        pauses.append(pause)
        now += pause
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_BACKOFF_S
    queue.add(A, now)
    assert queue.take(now) == A
    assert queue.failed(A, now, at_least_s=90.0) == 90.0


def test_an_object_that_is_gone_is_forgotten() -> None:
    """Nothing of it stays in memory, and a new one of its name starts without a pause."""
    queue = WorkQueue()
    queue.add(A, 0.0)
    queue.take(0.0)
    queue.failed(A, 0.0)
    queue.forget(A)
    assert (len(queue), queue.next_due()) == (0, None)
    queue.add(A, 0.0)
    assert queue.take(0.0) == A


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.floats(0, 5)), min_size=1, max_size=20))
def test_whatever_is_added_is_looked_at_in_the_end(wishes: list[tuple[tuple[str, str], float]]) -> None:
    """No wish is lost, whatever the order."""
    queue = WorkQueue()
    for key, delay_s in wishes:
        queue.add(key, 0.0, delay_s)
    looked = set()
    while (due := queue.next_due()) is not None and due < 100.0:
        taken = queue.take(due)
        assert taken is not None
        looked.add(taken)
        queue.done(taken, due, again_s=1000.0)
    assert looked == {key for key, _ in wishes}
