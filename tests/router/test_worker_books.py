"""A worker's load with this router's own submissions in it, never counted twice nor forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.router.worker_books import REPORT_LAG_S, Charge, WorkerBooks
from twolane.v1 import worker_pb2


def test_a_submission_counts_at_once_and_until_a_later_report() -> None:
    """A report that may have left before the submission arrived does not take it off."""
    books = WorkerBooks()
    books.report(worker_pb2.Load(waiting_tokens=100, running=2, predicted_peak_pages=10), 1.0)
    books.charge(Charge(tokens=50, pages=7, running=1, at_s=2.0))
    assert (books.waiting_tokens, books.running, books.predicted_peak_pages) == (150, 3, 17)
    books.report(worker_pb2.Load(waiting_tokens=100, running=2, predicted_peak_pages=10), 2.0)
    assert books.waiting_tokens == 150
    seen = worker_pb2.Load(waiting_tokens=150, running=3, predicted_peak_pages=17)
    books.report(seen, 2.01 + REPORT_LAG_S)
    assert (books.waiting_tokens, books.running, books.predicted_peak_pages) == (150, 3, 17)


def test_a_computed_prompt_waits_no_longer() -> None:
    """Its tokens go, its pages stay until the answer ends."""
    books = WorkerBooks()
    charge = Charge(tokens=50, pages=7, running=1, at_s=2.0)
    books.charge(charge)
    books.prompt_done(charge)
    assert (books.waiting_tokens, books.running, books.predicted_peak_pages) == (0, 1, 7)
    books.settle(charge)
    assert (books.waiting_tokens, books.running, books.predicted_peak_pages) == (0, 0, 0)


def test_a_report_that_lags_behind_does_not_hide_what_runs_here() -> None:
    """What this router has running is the least a worker can have."""
    books = WorkerBooks()
    for _ in range(3):
        books.charge(Charge(tokens=10, pages=1, running=1, at_s=1.0))
    books.report(worker_pb2.Load(), 9.0)
    assert (books.waiting_tokens, books.running, books.predicted_peak_pages) == (30, 3, 3)


@given(steps=st.lists(st.tuples(st.sampled_from(["charge", "done", "settle", "report"]), st.integers(0, 5))))
def test_after_everything_is_settled_only_the_report_counts(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of submissions, first tokens, ends and reports."""
    books, open_charges, now_s = WorkerBooks(), list[Charge](), 0.0
    last = worker_pb2.Load()
    for kind, pick in steps:
        now_s += 0.02
        if kind == "charge":
            open_charges.append(Charge(tokens=pick * 10, pages=pick, running=pick % 2, at_s=now_s))
            books.charge(open_charges[-1])
        elif kind == "report":
            last = worker_pb2.Load(waiting_tokens=pick, running=pick, predicted_peak_pages=pick)
            books.report(last, now_s)
        elif open_charges and kind == "done":
            books.prompt_done(open_charges[pick % len(open_charges)])
        elif open_charges:
            books.settle(open_charges.pop(pick % len(open_charges)))
        assert books.waiting_tokens >= sum(charge.tokens for charge in open_charges)
    for charge in open_charges:
        books.settle(charge)
    assert books.waiting_tokens == last.waiting_tokens
    assert books.running == last.running
    assert books.predicted_peak_pages == last.predicted_peak_pages
