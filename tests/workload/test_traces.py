"""Reading of traces: what is read, scaled and refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from twolane.core.errors import InvalidRequest, NotFound
from twolane.workload.traces import (
    TraceRequest,
    overlaid,
    read_sessions,
    read_trace,
    scaled_to_rate,
    spread_ties,
)

PLAIN = "arrival_s,input_tokens,output_tokens\n2.0,10,3\n4.0,20,1\n"


def _write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_trace_is_read_from_zero_and_sped_up(tmp_path: Path, name: str) -> None:
    """The first request is at 0 and rate_scale divides the gaps."""
    found = read_trace(_write(tmp_path / name, PLAIN), rate_scale=2.0)
    assert found == [TraceRequest(0.0, 10, 3), TraceRequest(1.0, 20, 1)]


def test_cached_tokens_leave_one_token_to_compute(tmp_path: Path) -> None:
    """A full hit still has one uncached token; an empty cell is no hit."""
    text = "arrival_s,input_tokens,output_tokens,prefix_hit_tokens\n0,512,3,512\n1,600,1,\n"
    found = read_trace(_write(tmp_path / "t.csv", text))
    assert [request.uncached_tokens for request in found] == [1, 600]


def test_limit_keeps_the_first_requests(tmp_path: Path) -> None:
    """The limit cuts the end."""
    assert len(read_trace(_write(tmp_path / "t.csv", PLAIN), limit=1)) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("arrival_s,input_tokens\n0,1\n", "lacks the columns output_tokens"),
        ("session,t_s,input_tokens,output_tokens\ns,0,1,1\n", "trace of sessions"),
        ("arrival_s,input_tokens,output_tokens\n0,many,1\n", "line 2: input_tokens is 'many'"),
        ("arrival_s,input_tokens,output_tokens\n0,1\n", "line 2: output_tokens is None"),
        ("arrival_s,input_tokens,output_tokens\n-1,1,1\n", "arrival_s is '-1'"),
    ],
)
def test_bad_files_are_refused_with_their_fault(tmp_path: Path, text: str, complaint: str) -> None:
    """The message names the column, the line and the cell."""
    with pytest.raises(InvalidRequest, match=complaint):
        read_trace(_write(tmp_path / "t.csv", text))


def test_a_missing_file_and_broken_gzip_are_refused(tmp_path: Path) -> None:
    """Neither ends in a stack trace of the standard library."""
    with pytest.raises(NotFound):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "t.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(InvalidRequest, match="no readable CSV"):
        read_trace(tmp_path / "t.csv.gz")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_scale_must_be_positive(tmp_path: Path, scale: float) -> None:
    """Zero and worse are refused."""
    with pytest.raises(InvalidRequest, match="rate_scale"):
        read_trace(_write(tmp_path / "t.csv", PLAIN), rate_scale=scale)


def test_sessions_keep_their_inner_distances(tmp_path: Path) -> None:
    """Turns of one session stay as far apart as in the file; too long prompts are left out."""
    header = "session,t_s,input_tokens,output_tokens,prefix_hit_tokens"
    path = _write(tmp_path / "t.csv", f"{header}\na,0,5,1,0\na,7,6,1,5\na,9,999,1,5\n")
    found = read_sessions(path, sessions_per_s=0.01, rng=np.random.default_rng(1), max_input_tokens=100)
    assert found == [TraceRequest(0.0, 5, 1), TraceRequest(7.0, 6, 1, 5)]


def test_sessions_start_at_random_but_repeatable_times(tmp_path: Path) -> None:
    """Starts depend on the generator alone and have the asked mean distance."""
    rows = "".join(f"s{index},0,5,1\n" for index in range(2000))
    path = _write(tmp_path / "t.csv", f"session,t_s,input_tokens,output_tokens\n{rows}")
    runs = [
        read_sessions(path, sessions_per_s=4.0, rng=np.random.default_rng(3), max_input_tokens=9)
        for _ in "ab"
    ]
    assert runs[0] == runs[1]
    assert runs[0][-1].arrival_s == pytest.approx(500.0, rel=0.1)


def test_ties_are_spread_up_to_the_next_time() -> None:
    """Equal times become different ones below the next time, in order."""
    ties = [TraceRequest(0.0, 1, 1), TraceRequest(0.0, 2, 1), TraceRequest(3.0, 3, 1)]
    spread = spread_ties(ties, np.random.default_rng(0))
    times = [request.arrival_s for request in spread]
    assert times == sorted(times)
    assert len(set(times)) == 3
    assert times[-1] == 3.0


def test_a_trace_is_stretched_to_a_rate() -> None:
    """Ten requests over nine seconds become two per second."""
    requests = [TraceRequest(float(second), 1, 1) for second in range(10)]
    assert scaled_to_rate(requests, 2.0)[-1].arrival_s == pytest.approx(5.0)
    with pytest.raises(InvalidRequest, match="two requests"):
        scaled_to_rate(requests[:1], 2.0)


def test_copies_of_a_trace_have_its_requests_and_its_span() -> None:
    """Each copy is turned: the same requests as often, within the same time, and not all at once."""
    trace = [TraceRequest(float(index), 10 + index, 1) for index in range(200)]
    found = overlaid(trace, 3, np.random.default_rng(0))
    assert sorted(one.input_tokens for one in found) == sorted(3 * [one.input_tokens for one in trace])
    assert [one.arrival_s for one in found] == sorted(one.arrival_s for one in found)
    assert found[-1].arrival_s <= 199.0
    assert len({one.arrival_s for one in found}) > 500
    assert overlaid(trace, 1, np.random.default_rng(0)) == trace
    with pytest.raises(InvalidRequest, match="copies"):
        overlaid(trace, 0, np.random.default_rng(0))
