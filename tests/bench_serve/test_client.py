"""One request against a scripted server: what is measured, and how failures are named."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests.bench_serve.stub_server import Script, serving
from twolane.bench.client import BenchClient, PlannedRequest, Sample, request_body
from twolane.core.errors import ConfigError, Unavailable
from twolane.workload.latency import Outcome


@pytest.fixture
def script() -> Iterator[Script]:
    """A server that answers with three pieces."""
    with serving(Script()) as script:
        yield script


async def _send(url: str, timeout_s: float = 20.0) -> Sample:
    body = request_body("stub", [1, 2, 3, 4, 5], 3, ignore_eos=True)
    ticks = itertools.count()
    async with BenchClient(url, "sesame", timeout_s, clock=lambda: float(next(ticks))) as client:
        return await client.send(PlannedRequest(0, 0.0, "short", 5, body), 0.0)


async def test_a_whole_answer_is_measured(script: Script) -> None:
    """Counts come from the server's usage; first and last piece have their times."""
    sample = await _send(script.url)
    assert sample.outcome is Outcome.DONE
    assert (sample.prompt_tokens, sample.output_tokens, sample.error_code) == (5, 3, "")
    assert sample.first_s is not None
    assert sample.last_s is not None
    assert sample.sent_s < sample.first_s <= sample.last_s


async def test_what_is_asked_fixes_the_length_of_the_answer(script: Script) -> None:
    """Greedy, exactly so many tokens, usage at the end, and the key in its header."""
    await _send(script.url)
    [asked] = script.asked
    assert asked["prompt"] == [1, 2, 3, 4, 5]
    assert (asked["max_tokens"], asked["ignore_eos"], asked["temperature"]) == (3, True, 0)
    assert asked["stream_options"] == {"include_usage": True}
    assert script.authorizations == ["Bearer sesame"]


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (429, "overloaded", Outcome.REJECTED),
        (503, "unavailable", Outcome.REJECTED),
        (400, "invalid_request", Outcome.FAILED),
    ],
)
async def test_a_refusal_keeps_the_servers_code(
    status: int, code: str, outcome: Outcome, script: Script
) -> None:
    """Overload is told apart from a wrong request."""
    script.status, script.error_code = status, code
    sample = await _send(script.url)
    assert (sample.outcome, sample.error_code, sample.first_s) == (outcome, code, None)


async def test_an_error_in_the_middle_is_a_failure_with_its_code(script: Script) -> None:
    """What came before stays measured."""
    script.error_after = 2
    sample = await _send(script.url)
    assert (sample.outcome, sample.error_code) == (Outcome.FAILED, "worker_lost")
    assert sample.first_s is not None


async def test_a_stream_that_just_ends_is_a_failure(script: Script) -> None:
    """Without [DONE] the answer is not whole."""
    script.cut_after = 1
    sample = await _send(script.url)
    assert (sample.outcome, sample.error_code) == (Outcome.FAILED, "answer_cut_short")


async def test_a_server_that_says_nothing_is_given_up(script: Script) -> None:
    """Bounded by the request's own timeout."""
    script.hold = threading.Event()
    sample = await _send(script.url, timeout_s=0.05)
    assert (sample.outcome, sample.error_code) == (Outcome.FAILED, "client_timeout")


async def test_nobody_there_is_a_failure_of_its_own() -> None:
    """A connection that can't be made is told apart from one that breaks."""
    sample = await _send("http://127.0.0.1:9")
    assert (sample.outcome, sample.error_code) == (Outcome.FAILED, "connect_failed")


async def test_the_first_model_is_found_or_the_reason_is_said(script: Script) -> None:
    """Before a run is planned."""
    async with BenchClient(script.url + "/v1/", "", 5.0) as client:
        assert await client.first_model() == "stub"
    script.models = ()
    async with BenchClient(script.url, "", 5.0) as client:
        with pytest.raises(ConfigError, match="names no model"):
            await client.first_model()
    async with BenchClient("http://127.0.0.1:9", "", 5.0) as client:
        with pytest.raises(Unavailable, match="nothing answers at"):
            await client.first_model()


async def test_an_address_without_a_scheme_is_refused() -> None:
    """Before a connection is tried."""
    with pytest.raises(ConfigError, match="must start with http"):
        BenchClient("localhost:8000", "", 5.0)
