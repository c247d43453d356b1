"""The Kubernetes API as the operator uses it: a few verbs over plain objects, on the official client.

Every failure becomes a ClusterError that says whether trying again can help; nothing is retried here,
since the reconciler comes back with a fresh observation anyway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio import client

from twolane.operator.kinds import path_of
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.names import MANAGER
from twolane.operator.resources.shape import Json
from twolane.operator.store import Store

REQUEST_TIMEOUT_S = 15.0
PAGE_OBJECTS = 500
# Requests of this process that the API server has to answer at a time; watches do not count.
MAX_IN_FLIGHT = 8
# A watch that is silent for so long is dead: the API server sends a bookmark every minute.
SILENCE_S = 150.0
# No object has it, so an apply that names it can only make one.
_NO_VERSION = "1"
_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
Body = Json | list[Json]


class ClusterError(Exception):
    """The API server refused a request, or could not be asked.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        retry_after_s: pause that the API server asks for; 0 when it names none.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def permanent(self) -> bool:
        """Whether the same request will be refused again until somebody changes something."""
        return self.status in (400, 403, 405, 413, 415, 422)


class KindMissingError(ClusterError):
    """The cluster does not know the kind of an object: nothing else makes server-side apply find nothing."""

    def __init__(self, body: Json) -> None:
        group = body["apiVersion"]
        super().__init__(f"the cluster has no kind {body['kind']} of {group}; install its definitions", 404)

    @property
    def permanent(self) -> bool:
        """Somebody has to install something."""
        return True


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects that were asked for, as of a resource version."""

    items: list[Json]
    version: str


class Cluster:
    """Requests to one API server; the answers of writes go into the store."""

    def __init__(self, api: client.ApiClient, metrics: OperatorMetrics, store: Store | None = None) -> None:
        self._api = api
        self._metrics = metrics
        self.store = store or Store()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        # Whoever leads must be able to say so while its other requests wait for a busy API server.
        self._lease_slots = asyncio.Semaphore(1)

    async def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """An object, or None when there is none."""
        try:
            return await self._request("GET", path_of(kind, namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def pages(self, kind: str, namespace: str, selector: str = "") -> AsyncIterator[Listing]:
        """All objects with the labels, page by page; of every namespace when it is empty.

        Raises:
            ClusterError: 404 when the cluster does not know the kind; 410 when it took too long.
        """
        query = {"labelSelector": selector, "limit": str(PAGE_OBJECTS)}
        while True:
            answer = await self._request("GET", path_of(kind, namespace), query)
            # Entries of a list do not say what they are.
            said = {"kind": kind, "apiVersion": answer["apiVersion"]}
            yield Listing([item | said for item in answer["items"]], answer["metadata"]["resourceVersion"])
            if not (more := answer["metadata"].get("continue")):
                return
            query["continue"] = more

    async def list(self, kind: str, namespace: str, selector: str = "") -> Listing:
        """The same at once."""
        found = Listing([], "0")
        async for page in self.pages(kind, namespace, selector):
            found = Listing(found.items + page.items, page.version)
        return found

    async def watch(
        self, kind: str, namespace: str, selector: str, version: str, limit_s: int
    ) -> AsyncIterator[Json]:
        """Everything that happens to such objects after a version, as the API server says it, for `limit_s`.

        Raises:
            ClusterError: 410 when that version is too long ago.
        """
        query = {"labelSelector": selector, "resourceVersion": version, "timeoutSeconds": str(limit_s)}
        query |= {"watch": "true", "allowWatchBookmarks": "true"}
        headers = {"Accept": "application/json"}
        limits = aiohttp.ClientTimeout(
            total=limit_s + 30, sock_connect=REQUEST_TIMEOUT_S, sock_read=SILENCE_S
        )
        try:
            prepared = await self._api.param_serialize(
                "GET",
                path_of(kind, namespace) + _query(query),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
            response = (await self._api.call_api(*prepared, _request_timeout=limits)).response
            async with response:
                self._metrics.asked("WATCH", response.status)
                if response.status != 200:
                    raise _error(response.status, await response.read(), dict(response.headers))
                async for line in response.content:
                    yield _event(line)
        # Half a line, too, is a connection that broke off.
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError) as error:
            raise _no_answer(error) from error

    async def create(self, body: Json, manager: str = MANAGER) -> Json:
        """Makes an object; 409 when there is one of that name."""
        path = path_of(body["kind"], body["metadata"]["namespace"])
        return self._kept(await self._request("POST", path, {"fieldManager": manager}, body))

    async def apply_new(self, body: Json) -> Json:
        """Server-side apply that makes an object; 409 when there is one of that name.

        Unlike `create` it leaves the fields to us as an apply does, so that a later one can take them away.
        """
        return await self.apply({**body, "metadata": {**body["metadata"], "resourceVersion": _NO_VERSION}})

    async def apply(self, body: Json, manager: str = MANAGER) -> Json:
        """Server-side apply: our fields as we say, whoever else had written them; all others stay."""
        metadata = body["metadata"]
        path = path_of(body["kind"], metadata["namespace"], metadata["name"])
        query = {"fieldManager": manager, "force": "true"}
        try:
            return self._kept(await self._request("PATCH", path, query, body, _APPLY))
        except ClusterError as error:
            if error.status == 404:
                raise KindMissingError(body) from error
            raise

    async def merge(self, kind: str, namespace: str, name: str, body: Json, manager: str = MANAGER) -> Json:
        """Changes the fields given."""
        path = path_of(kind, namespace, name)
        return self._kept(await self._request("PATCH", path, {"fieldManager": manager}, body, _MERGE))

    async def write_status(self, kind: str, namespace: str, name: str, uid: str, status: Json) -> Json:
        """Writes a whole status. Its only writer leads, so nobody's change can be lost."""
        path = path_of(kind, namespace, name) + "/status"
        # Another object may have the name by now.
        same: Json = {"op": "test", "path": "/metadata/uid", "value": uid}
        change: Body = [same, {"op": "add", "path": "/status", "value": status}]
        return self._kept(await self._request("PATCH", path, {"fieldManager": MANAGER}, change, _JSON_PATCH))

    async def replace(self, body: Json) -> Json:
        """Replaces an object as it was seen; 409 when it has changed since."""
        metadata = body["metadata"]
        path = path_of(body["kind"], metadata.get("namespace", ""), metadata["name"])
        return await self._request("PUT", path, {"fieldManager": MANAGER}, body)

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        """Deletes an object and then its dependents; one that is gone, or another than `uid`, is no error."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            answer = await self._request("DELETE", path_of(kind, namespace, name), None, body)
        except ClusterError as error:
            if error.status == 404 or (uid and error.status == 409):
                self.store.deleted(kind, namespace, name, uid)
                return
            raise
        if answer.get("kind") == "Status":
            self.store.deleted(kind, namespace, name, answer.get("details", {}).get("uid", ""))
        else:
            self._kept(answer)

    async def close(self) -> None:
        """Closes connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Json:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        async with self._lease_slots if "/leases" in path else self._slots:
            try:
                status, text, answered = await self._exchange(method, path + _query(query), headers, body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._metrics.asked(method, 0)
                raise _no_answer(error) from error
        self._metrics.asked(method, status)
        if 200 <= status < 300:
            answer: Json = orjson.loads(text)
            return answer
        raise _error(status, text, answered)

    def _kept(self, answer: Json) -> Json:
        self.store.answered(answer)
        return answer

    async def _exchange(
        self, method: str, path: str, headers: dict[str, str], body: Body | None
    ) -> tuple[int, bytes, dict[str, str]]:
        prepared = await self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(*prepared, _request_timeout=REQUEST_TIMEOUT_S)
        text = await response.read()  # type: ignore[no-untyped-call]
        return int(response.status), bytes(text), dict(response.headers)


def _query(query: dict[str, str] | None) -> str:
    return f"?{urlencode(query)}" if query else ""


def _event(line: bytes) -> Json:
    """One line of a watch; what the API server says of the watch itself is raised."""
    event: Json = orjson.loads(line)
    if event["type"] == "ERROR":
        status = event["object"]
        raise ClusterError(str(status.get("message", "watch refused")), int(status.get("code", 500)))
    return event


def _no_answer(error: Exception) -> ClusterError:
    return ClusterError(f"no answer from the API server: {error or type(error).__name__}")


def _error(status: int, text: bytes, headers: dict[str, str]) -> ClusterError:
    return ClusterError(_reason(text), status, _retry_after(headers))


def _reason(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300].decode(errors="replace") or "no reason given"


def _retry_after(headers: dict[str, str]) -> float:
    value = {name.lower(): value for name, value in headers.items()}.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
