"""Small servers that speak the protocols a model is fetched by: an S3 store and a hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = tuple[int, str, bytes, dict[str, str]]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from `server.answer`, and keeps what was asked in `server.asked`."""

    server: Source

    def do_GET(self) -> None:
        """Sends an answer."""
        self._send(body=True)

    def do_HEAD(self) -> None:
        """Sends its head."""
        self._send(body=False)

    def _send(self, body: bool) -> None:
        place = urlsplit(self.path)
        self.server.asked.append((unquote(place.path), self.headers.get("Authorization", "")))
        query = {name: values[0] for name, values in parse_qs(place.query).items()}
        status, kind, content, headers = self.server.answer(unquote(place.path), query)
        self.send_response(status)
        every = {"Content-Type": kind, "Content-Length": str(len(content)), **headers}
        for name, value in every.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Source(ThreadingHTTPServer):
    """A server of files on loopback."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """What is sent for a path."""
        raise NotImplementedError

    def found(self, name: str, headers: dict[str, str]) -> Answer:
        """A file, or 404."""
        content = self.files.get(name)
        if content is None:
            return 404, "text/plain", b"none", {}
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        dated = {"ETag": f'"{digest}"', "Last-Modified": "Tue, 01 Jan 2030 00:00:00 GMT"}
        return 200, "application/octet-stream", content, dated | headers


class Store(Source):
    """An S3 store with one bucket, "models"."""

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """Listings and objects."""
        if not path.startswith("/models"):
            text = "<Error><Code>NoSuchBucket</Code><Message>no such bucket</Message></Error>"
            return 404, "application/xml", text.encode(), {}
        if "location" in query or path.rstrip("/") == "/models":
            return 200, "application/xml", self._listing(query).encode(), {}
        return self.found(path.removeprefix("/models/"), {})

    def _listing(self, query: Mapping[str, str]) -> str:
        if "location" in query:
            return "<LocationConstraint/>"
        dated = "<Size>1</Size><LastModified>2030-01-01T00:00:00.000Z</LastModified>"
        names = sorted(name for name in self.files if name.startswith(query.get("prefix", "")))
        entries = "".join(f"<Contents><Key>{escape(name)}</Key>{dated}</Contents>" for name in names)
        head = "<Name>models</Name><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{entries}</ListBucketResult>"


class Hub(Source):
    """A hub with one repository, "owner/tiny"."""

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """The repository's listing and its files."""
        if path.startswith("/api/models/owner/tiny/tree/"):
            tree = [
                {"type": "file", "path": name, "oid": COMMIT, "size": len(content)}
                for name, content in self.files.items()
            ]
            return 200, "application/json", json.dumps(tree).encode(), {}
        if path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in self.files]
            body = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return 200, "application/json", json.dumps(body).encode(), {}
        if path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            return self.found(path.split(COMMIT + "/", 1)[1], {"X-Repo-Commit": COMMIT})
        missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return 404, "application/json", b"{}", missing


@contextmanager
def serving(source: Source) -> Iterator[Source]:
    """Runs a source for the time of a test."""
    thread = threading.Thread(target=source.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield source
    finally:
        source.shutdown()
        thread.join(10)
        source.server_close()
