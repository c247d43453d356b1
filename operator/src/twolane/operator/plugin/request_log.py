"""`twolane k8s logs`: every line about one request, from all pods of a model, in the order of time.

Processes log JSON lines with the request's id; the router also notes the client's own `x-request-id`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from twolane.core.errors import NotFound, TwolaneError
from twolane.operator.names import COMPONENT_LABEL, MODEL_LABEL
from twolane.operator.observed import label
from twolane.operator.plugin.access import Access, ClusterFlags, model_deployment, objects
from twolane.operator.resources.shape import Json

CONTAINER = "twolane"
READERS = 8
KEPT_BYTES = 2**20
"""What of a log that is read again stays in memory; the rest goes to a file."""
_SHOWN_APART = ("ts", "level", "process", "msg", "logger", "request_id")


class LogFlags(ClusterFlags):
    """Flags of `twolane k8s logs`."""

    process = "k8s"
    verb = "k8s logs"

    name: CliPositionalArg[str]
    """The ModelDeployment."""
    request_id: CliPositionalArg[str]
    """The request's id, as the answer's `x-request-id` or `id` says it; or the client's own."""
    since_s: int = Field(default=3600, ge=1)
    """How far back to read."""
    json_lines: bool = False
    """Print the lines as they were logged, with the pod's name added."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One logged line.

    Attributes:
        pod: who logged it.
        fields: what it says; empty text where a field is missing.
    """

    pod: str
    fields: dict[str, Any]

    @property
    def time(self) -> str:
        """When, as it was logged: times of one form sort as texts."""
        return str(self.fields.get("ts", ""))

    def words(self) -> str:
        """The line for a person."""
        extra = {key: value for key, value in self.fields.items() if key not in _SHOWN_APART}
        details = " ".join(f"{key}={value}" for key, value in extra.items())
        head = f"{self.time} {self.pod} {self.fields.get('level', '')} {self.fields.get('msg', '')}"
        return f"{head} {details}".rstrip()


def main(argv: list[str]) -> int:
    """Prints the lines; 1 when there are none."""
    flags = LogFlags.from_args(argv)
    access = Access(flags)
    model_deployment(access, flags.name)
    pods = access.list(objects("pods", access.namespace, group="api/v1"), f"{MODEL_LABEL}={flags.name}")
    routers = [pod for pod in pods if label(pod, COMPONENT_LABEL) == "router"]
    with Logs(access, flags.since_s) as logs:
        # Workers know a request by the router's id alone, and routers say it in a line about its end.
        entries = collect(logs, routers, {flags.request_id}, again=True)
        ids = {str(entry.fields.get("request_id", "")) for entry in entries}
        found = collect(logs, pods, {flags.request_id, *ids} - {""})
    for entry in found:
        print(json.dumps({"pod": entry.pod, **entry.fields}) if flags.json_lines else entry.words())
    if not found:
        raise NotFound(
            f"no line about {flags.request_id} in {len(pods)} pods during the last {flags.since_s} s; "
            "pods that are gone took their logs along: a log collector keeps them"
        )
    return 0


@dataclass(slots=True)
class Logs:
    """The logs of pods, each read from the API server once.

    Attributes:
        access: the way to the API server.
        since_s: how far back to read.
    """

    access: Access
    since_s: int
    _kept: dict[tuple[str, bool], SpooledTemporaryFile[str]] = field(default_factory=dict)

    def __enter__(self) -> Logs:
        """Nothing is read yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forgets what was kept."""
        for kept in self._kept.values():
            kept.close()

    def lines(self, name: str, previous: bool, again: bool) -> Iterator[str]:
        """The lines of a pod, or of its container before a restart; `again` if asked for twice."""
        if (kept := self._kept.get((name, previous))) is not None:
            kept.seek(0)
            yield from (line.rstrip("\n") for line in kept)
            return
        query = {"container": CONTAINER, "sinceSeconds": str(self.since_s)}
        query |= {"previous": "true"} if previous else {}
        lines = self.access.lines(objects("pods", self.access.namespace, name, "api/v1") + "/log", **query)
        if not again:
            yield from lines
            return
        kept = SpooledTemporaryFile(KEPT_BYTES, "w+", encoding="utf-8")  # noqa: SIM115
        self._kept[name, previous] = kept
        for line in lines:
            kept.write(line + "\n")
            yield line


def collect(logs: Logs, pods: Iterable[Json], ids: Collection[str], *, again: bool = False) -> list[Entry]:
    """The entries of pods about a request of these ids, oldest first; `again` if there will be more ids.

    A pod that can't be read is named on stderr.
    """
    wanted = [(str(pod["metadata"]["name"]), previous) for pod in pods for previous in _lives(pod)]

    def read(which: tuple[str, bool]) -> list[Entry]:
        name, previous = which
        try:
            lines = logs.lines(name, previous, again)
            return [Entry(name, fields) for line in lines if (fields := about(line, ids))]
        except TwolaneError as error:
            print(f"twolane k8s logs: {name}: {error.message}", file=sys.stderr)
            return []

    with ThreadPoolExecutor(READERS) as readers:
        entries = [entry for each in readers.map(read, wanted) for entry in each]
    return sorted(entries, key=lambda entry: entry.time)


def _lives(pod: Json) -> list[bool]:
    """Whether to read a pod's present log (False), and that of the container before a restart (True)."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    own = next((status for status in statuses if status["name"] == CONTAINER), None)
    if own is None or not (own.get("state", {}).keys() & {"running", "terminated"} or own["restartCount"]):
        return []
    return [True, False] if own["restartCount"] else [False]


def about(line: str, ids: Collection[str]) -> dict[str, Any] | None:
    """The fields of a line that names one of the ids; an answer's choices carry the id and a number.

    None for a line about something else; a line that is no JSON object is its own message.
    """
    # Most lines are about other requests: a look at the text spares parsing them.
    if not any(each in line for each in ids):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return {"msg": line}
    for value in fields.values():
        for named in map(str, value if isinstance(value, list) else [value]):
            if any(named == each or named.startswith(each + "-") for each in ids):
                return fields
    return None
