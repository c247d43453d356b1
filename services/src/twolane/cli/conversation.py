"""A conversation with an OpenAI address: what was said, and the next answer as it streams in.

`twolane chat` drives it. Reading is blocking on purpose: Ctrl-C then ends the read, the connection
closes, and the server frees what the answer held.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

from twolane.bench.sse import DONE, SseParser
from twolane.cli.http_opener import opener_for
from twolane.core.errors import TwolaneError, Unavailable

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 300.0
READ_BYTES = 65536


class Refused(TwolaneError):
    """The server answered with an error; the message is the server's."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and the key to show (never printed)."""

    url: str
    api_key: str = field(default="", repr=False)

    def open(self, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        """GET, or POST with a body.

        Raises:
            Unavailable: nothing listens there.
            Refused: the server answered with an error status.
        """
        headers = {"content-type": "application/json"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)  # noqa: S310
        timeout_s = CONNECT_TIMEOUT_S if body is None else READ_TIMEOUT_S
        try:
            response: HTTPResponse = opener_for(self.url).open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            raise Refused(_server_message(error)) from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise Unavailable(
                f"nothing answers at {self.url} ({reason}); start it with `twolane up`, or give another --url"
            ) from error
        return response

    def models(self) -> list[str]:
        """Names of the models served there."""
        with self.open("/v1/models") as response:
            try:
                return [str(model["id"]) for model in json.load(response)["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise Refused(f"{self.url} is no OpenAI-compatible address: {error!r}") from error


@dataclass(slots=True)
class Conversation:
    """What was said so far.

    Attributes:
        endpoint: the server.
        model: who answers.
        system: the instruction that stands first; "" is none.
        options: further fields of every request (temperature, max_tokens).
        turns: messages, oldest first, without the system's.
    """

    endpoint: Endpoint
    model: str
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets what was said; the system's instruction stays."""
        self.turns.clear()

    def ask(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come.

        However it ends, the conversation stays well-formed: an answer that was cut short is kept as far
        as it came, and a question without any answer is forgotten.

        Raises:
            Unavailable: nothing answers, or the connection broke.
            Refused: the server answered with an error, at once or in the middle.
        """
        self.turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in self._stream():
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.turns.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.turns.pop()

    def _stream(self) -> Iterator[str]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": first + self.turns, "stream": True, **self.options}
        parser = SseParser()
        with self.endpoint.open("/v1/chat/completions", body) as response:
            while piece := _read(response):
                for data in parser.feed(piece):
                    if data == DONE:
                        return
                    yield from _texts(data)


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(READ_BYTES)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"the connection broke in the middle of the answer: {error}") from error


def _texts(data: bytes) -> Iterator[str]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise Refused(f"the server sent an event that is no JSON: {data[:80]!r}") from error
    if "error" in chunk:
        raise Refused(str(chunk["error"].get("message", chunk["error"])))
    for choice in chunk.get("choices", ()):
        if text := choice.get("delta", {}).get("content"):
            yield text


def _server_message(error: urllib.error.HTTPError) -> str:
    """What the server said, with its status and when to come back."""
    body = error.read(65536)
    try:
        said = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace").strip()[:200] or str(error.reason)
    wait = error.headers.get("retry-after")
    return f"{said} (status {error.code}{f', retry after {wait} s' if wait else ''})"
