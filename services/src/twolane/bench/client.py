"""Sends one request to an OpenAI address and notes when each piece of the answer came.

The replay calls it once a request. It never raises for what a server or a network can do: a failure is a
measurement, and its code goes into the report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from twolane.bench.prompts import Prompt
from twolane.bench.sse import DONE, SseParser
from twolane.core.clock import Clock
from twolane.core.errors import ConfigError, Internal, Unavailable
from twolane.workload.latency import Outcome

MODELS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a run.

    Attributes:
        index: its number.
        due_s: seconds after the start when it is to be sent.
        length_class: "short" or "long".
        input_tokens: prompt tokens asked for.
        body: JSON to post to /v1/completions.
    """

    index: int
    due_s: float
    length_class: str
    input_tokens: int
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Sample:
    """What was measured of one request; times in seconds after the start of the run.

    Attributes:
        index: number of the request.
        length_class: its class.
        due_s: when it was due.
        sent_s: when it was sent; later than due only if this machine is too slow.
        first_s: when the first piece of text came, or None.
        last_s: when the last piece came, or None.
        worst_gap_s: longest pause between two pieces.
        prompt_tokens: the server's count; the planned one if it gives none.
        output_tokens: the server's count; the number of pieces if it gives none.
        cached_tokens: prompt tokens the server says it had cached.
        outcome: how it ended.
        error_code: stable code of the failure, "" if there was none.
    """

    index: int
    length_class: str
    due_s: float
    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    worst_gap_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    outcome: Outcome = Outcome.FAILED
    error_code: str = ""


class StreamError(Exception):
    """An error that came as an event in the middle of an answer."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class BenchClient:
    """Talks to one address over one connection pool without a limit: open loop means no queue here."""

    def __init__(self, url: str, api_key: str, timeout_s: float, clock: Clock = time.monotonic) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url}: must start with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers=headers,
        )

    async def __aenter__(self) -> BenchClient:
        return self

    async def __aexit__(self, *exit_details: object) -> None:
        await self._session.close()

    async def first_model(self) -> str:
        """Name of the first model served.

        Raises:
            Unavailable: nothing answers there.
            ConfigError: what answers serves no model or is no OpenAI address.
        """
        timeout = aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S)
        try:
            async with self._session.get(f"{self.url}/v1/models", timeout=timeout) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"nothing answers at {self.url} ({error}); start it with `twolane up`"
            ) from error
        if response.status != 200:
            said = body[:200].decode(errors="replace")
            raise ConfigError(f"{self.url}/v1/models says {response.status}: {said}; is --api-key right?")
        try:
            return str(orjson.loads(body)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{self.url} names no model; wait for its workers, or give --model") from error

    async def send(self, request: PlannedRequest, start_s: float) -> Sample:
        """Sends a request and reads its answer to the end."""
        now_s = self._clock() - start_s
        sample = Sample(request.index, request.length_class, request.due_s, now_s)
        sample.prompt_tokens = request.input_tokens
        try:
            await self._read_answer(request, sample, start_s)
        except StreamError as error:
            sample.error_code = error.code
        except TimeoutError:
            sample.error_code = "client_timeout"
        except aiohttp.ClientConnectorError:
            sample.error_code = "connect_failed"
        except (aiohttp.ClientError, OSError):
            sample.error_code = "connection_broken"
        except (Internal, ValueError):
            sample.error_code = "malformed_answer"
        except asyncio.CancelledError:
            # The run's own bound passed; the request stays in the report.
            sample.error_code = "run_ended"
            sample.outcome = Outcome.CANCELLED
        return sample

    async def _read_answer(self, request: PlannedRequest, sample: Sample, start_s: float) -> None:
        async with self._session.post(f"{self.url}/v1/completions", data=request.body) as response:
            if response.status != 200:
                sample.error_code = _error_code(await response.read(), response.status)
                sample.outcome = Outcome.REJECTED if response.status in {429, 503} else Outcome.FAILED
                return
            parser = SseParser()
            pieces = 0
            async for data in response.content.iter_any():
                arrived_s = self._clock() - start_s
                for event in parser.feed(data):
                    if event == DONE:
                        sample.outcome = Outcome.DONE
                        continue
                    pieces += _take_event(orjson.loads(event), sample, arrived_s)
        if sample.output_tokens == 0:
            sample.output_tokens = pieces
        if sample.outcome is not Outcome.DONE:
            raise StreamError("answer_cut_short")


def _take_event(event: dict[str, Any], sample: Sample, arrived_s: float) -> int:
    """Adds one event to the sample; returns 1 if it brought text, else 0.

    Raises:
        StreamError: the event is an error.
    """
    if "error" in event:
        raise StreamError(str(event["error"].get("code") or "server_error"))
    usage = event.get("usage")
    if usage:
        sample.prompt_tokens = int(usage["prompt_tokens"])
        sample.output_tokens = int(usage["completion_tokens"])
        details = usage.get("prompt_tokens_details") or {}
        sample.cached_tokens = int(details.get("cached_tokens") or 0)
    if not any(choice.get("text") or choice.get("token_ids") for choice in event.get("choices") or ()):
        return 0
    if sample.last_s is not None:
        sample.worst_gap_s = max(sample.worst_gap_s, arrived_s - sample.last_s)
    if sample.first_s is None:
        sample.first_s = arrived_s
    sample.last_s = arrived_s
    return 1


def _error_code(body: bytes, status: int) -> str:
    try:
        return str(orjson.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{status}"


def request_body(model: str, prompt: Prompt, output_tokens: int, *, ignore_eos: bool) -> bytes:
    """JSON of a streamed, greedy completion of fixed length."""
    body: Mapping[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if ignore_eos else {}),
    }
    return orjson.dumps(body)
