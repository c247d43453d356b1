"""A person's way to the API server: kubeconfig, context, namespace, and reads with a deadline.

Every command of the plugin goes through it; its failures are sentences that say what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError, NotFound, TwolaneError, Unauthenticated, Unavailable
from twolane.operator.names import API_VERSION
from twolane.operator.resources.shape import Json

PAGE_OBJECTS = 500
SHORTCUTS: dict[str, str | list[str]] = {"namespace": "n", "all-namespaces": "A"}
DEPLOYMENTS = f"apis/{API_VERSION}"


class ClusterFlags(ProcessConfig):
    """Flags that every command takes, named as kubectl names them."""

    process: ClassVar[str] = "k8s"
    model_config = SettingsConfigDict(cli_shortcuts=SHORTCUTS)

    kubeconfig: str = ""
    """File to use; empty: KUBECONFIG, else ~/.kube/config."""
    context: str = ""
    """Context of that file; empty: its current one."""
    namespace: str = ""
    """Namespace; empty: that of the context, else default."""
    timeout_s: float = Field(default=15.0, gt=0)
    """How long one question to the API server may take."""


class Access:
    """Reads from one API server.

    Attributes:
        namespace: where to look when nothing else is said.
        clock_ahead_s: seconds by which this machine's clock was ahead of the API server's at the last answer.
    """

    def __init__(self, flags: ClusterFlags) -> None:
        """Finds the cluster.

        Raises:
            ConfigError: no kubeconfig, or no such context.
        """
        configuration = client.Configuration()
        where = {"config_file": flags.kubeconfig or None, "context": flags.context or None}
        try:
            contexts, current = config.list_kube_config_contexts(where["config_file"])  # type: ignore[no-untyped-call]
            config.load_kube_config(**where, client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            raise ConfigError(f"no cluster to ask: {error}; give --kubeconfig or set KUBECONFIG") from error
        configuration.retries = False
        self._api = client.ApiClient(configuration)
        self._timeout_s = flags.timeout_s
        self.namespace = flags.namespace or _namespace(current, contexts, flags.context)
        self.clock_ahead_s = 0.0

    def get(self, path: str, **query: str) -> Json | None:
        """An object, or None when there is none."""
        try:
            found: Json = json.loads(self._ask("GET", path, query).data)
        except NotFound:
            return None
        return found

    def list(self, path: str, selector: str = "", fields: str = "") -> list[Json]:
        """All objects of a path with the labels; none when the API server does not know the kind."""
        items: list[Json] = []
        query = {"limit": str(PAGE_OBJECTS), "labelSelector": selector, "fieldSelector": fields}
        while (page := self.get(path, **query)) is not None:
            items += page["items"]
            if not (more := page["metadata"].get("continue")):
                break
            query["continue"] = more
        return items

    def review(self, kind: str, spec: Json) -> Json:
        """Asks the API server who may do what; returns the status of the review."""
        group = "authorization.k8s.io/v1"
        path = f"apis/{group}/{kind.lower()}s"
        answer = self._ask("POST", path, {}, {"apiVersion": group, "kind": kind, "spec": spec})
        status: Json = json.loads(answer.data)["status"]
        return status

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The lines of a text, as they come."""
        answer = self._ask("GET", path, query, stream=True)
        try:
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")
        finally:
            answer.close()

    def _ask(
        self, method: str, path: str, query: dict[str, str], body: Json | None = None, *, stream: bool = False
    ) -> Any:
        asked = urlencode({name: value for name, value in query.items() if value})
        prepared = self._api.param_serialize(
            method,
            f"/{path}" + (f"?{asked}" if asked else ""),
            header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*prepared, _request_timeout=self._timeout_s).response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"no answer from the API server at {self._api.configuration.host}: {_cause(error)}; "
                "check the context, and that its address can be reached from here"
            ) from error
        self._note_clock(response.headers.get("Date", ""))
        if not 200 <= response.status < 300:
            raise _refusal(response.status, path, response.read())
        if not stream:
            response.read(cache_content=True)
        return response

    def _note_clock(self, date: str) -> None:
        if date:
            self.clock_ahead_s = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()


def objects(plural: str, namespace: str, name: str = "", group: str = DEPLOYMENTS) -> str:
    """The path of objects of a kind: of one namespace, or of all when it is empty."""
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{place}/{plural}" + (f"/{name}" if name else "")


def model_deployment(access: Access, name: str) -> Json:
    """A ModelDeployment of the namespace in use.

    Raises:
        NotFound: there is none; the message names those that are there.
    """
    if (found := access.get(objects("modeldeployments", access.namespace, name))) is not None:
        return found
    others = [item["metadata"]["name"] for item in access.list(objects("modeldeployments", access.namespace))]
    known = f"there are {', '.join(others)}" if others else "there are none here; try --namespace"
    raise NotFound(f"no ModelDeployment {name!r} in namespace {access.namespace}; {known}")


def _namespace(current: Json, contexts: list[Json], wanted: str) -> str:
    context = next((item for item in contexts if item["name"] == wanted), current)
    return str(context.get("context", {}).get("namespace") or "default")


def _refusal(status: int, path: str, text: bytes) -> TwolaneError:
    try:
        reason = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        reason = text[:300].decode(errors="replace") or "no reason given"
    if status == 404:
        return NotFound(reason)
    if status in (401, 403):
        return Unauthenticated(f"the API server refuses {path}: {reason}")
    return Unavailable(f"the API server answers {status} to {path}: {reason}")


def _cause(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error).split(": ", 1)[-1]
