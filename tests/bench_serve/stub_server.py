"""A stand-in for an OpenAI address: answers from a script, remembers what it was asked.

Shared by the tests of the load generator and of the chat.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """What the stand-in says.

    Attributes:
        pieces: text of each event of an answer.
        status: HTTP status of an answer.
        error_code: code of the error body when status is not 200.
        error_after: send an error event after this many pieces; None never.
        cut_after: close the connection after this many pieces; None never.
        models: names it lists.
        hold: an answer waits for this before its first piece.
        asked: bodies received, in order.
        authorizations: the header of each request.
    """

    pieces: tuple[str, ...] = ("Hel", "lo", "!")
    status: int = 200
    error_code: str = "overloaded"
    error_after: int | None = None
    cut_after: int | None = None
    models: tuple[str, ...] = ("stub",)
    hold: threading.Event | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:
        body = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.script.models]}
        self._reply(200, body)

    def do_POST(self) -> None:
        script = self.script
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script.asked.append(body)
        script.authorizations.append(self.headers.get("authorization"))
        if script.hold is not None:
            script.hold.wait(30)
        if script.status != 200:
            error = {"message": "come back later", "code": script.error_code, "type": "server_error"}
            self._reply(script.status, {"error": error})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in self._events(body):
            if event is None:
                return
            self.wfile.write(b"data: " + event + b"\n\n")
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def _events(self, body: dict[str, Any]) -> Iterator[bytes | None]:
        script = self.script
        for number, piece in enumerate(script.pieces):
            if number == script.cut_after:
                yield None
            if number == script.error_after:
                yield json.dumps({"error": {"message": "worker lost", "code": "worker_lost"}}).encode()
                yield None
            choice = {"index": 0, "text": piece, "delta": {"content": piece}, "finish_reason": None}
            yield json.dumps({"choices": [choice]}).encode()
        prompt = body.get("prompt")
        usage = {
            "prompt_tokens": len(prompt) if isinstance(prompt, list) else 7,
            "completion_tokens": len(script.pieces),
        }
        end = {"index": 0, "text": "", "delta": {}, "finish_reason": "length"}
        yield json.dumps({"choices": [end]}).encode()
        yield json.dumps({"choices": [], "usage": usage}).encode()

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "3")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Serves the script on a free port of this machine; `script.url` is its address."""
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        if script.hold is not None:
            script.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
