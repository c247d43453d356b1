"""The objects of the watched kinds as they were last seen, so that a look costs no request.

`watch` fills it from lists and watches, `cluster` with the answer of each write, and `observe` reads it.
Pure: no clock, no requests. Resource versions of one kind are compared as the numbers they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from twolane.operator.names import MODEL_DEPLOYMENT, MODEL_LABEL
from twolane.operator.resources.shape import Json
from twolane.operator.slim import slim

EXPOSURE_KINDS = ("Ingress", "HTTPRoute", "HorizontalPodAutoscaler")
"""What brings requests or routers from outside; a cluster may lack one."""
CHILD_KINDS = (
    "WorkerPool",
    "Deployment",
    "StatefulSet",
    "Service",
    "PodDisruptionBudget",
    "NetworkPolicy",
    *EXPOSURE_KINDS,
)
KINDS = (MODEL_DEPLOYMENT, *CHILD_KINDS, "Pod")
"""Every kind that is watched."""

Place = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class _Held:
    """One object; its text is JSON, a tenth of the memory and a fresh copy for every reader.

    Attributes:
        model: name of the ModelDeployment that it is, or was made for.
    """

    uid: str
    version: int
    model: str
    text: bytes


class Store:
    """What is known of each object, never older than what this process itself wrote.

    A watch tells of a kind's changes in their order, so what is at most as new as the last of them is known
    already: an answer that comes late can bring nothing back.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[Place], None] = lambda model: None
        """Told of the ModelDeployment whenever something of it became another."""
        self._held: dict[str, dict[Place, _Held]] = {}
        self._models: dict[tuple[str, str, str], set[str]] = {}
        self._reached: dict[tuple[str, str], int] = {}
        self._ended: dict[str, set[str]] = {}
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._held = {kind: {} for kind in KINDS}
        self._models = defaultdict(set)
        self._reached = {}
        self._ended = {kind: set() for kind in KINDS}

    def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """An object; None when none is known."""
        held = self._held[kind].get((namespace, name))
        return None if held is None else _read(held)

    def of_model(self, kind: str, namespace: str, model: str) -> list[Json]:
        """All objects of a kind that were made for a ModelDeployment of this name."""
        names = self._models.get((kind, namespace, model), ())
        return [_read(self._held[kind][namespace, name]) for name in names]

    def models(self) -> list[Place]:
        """Every ModelDeployment there is."""
        return list(self._held[MODEL_DEPLOYMENT])

    def put(self, body: Json) -> None:
        """Takes what a watch or a list brought, unless something newer is known."""
        kind, metadata = body["kind"], body["metadata"]
        place, version = _place(body), int(metadata["resourceVersion"])
        held = self._held[kind].get(place)
        if metadata["uid"] in self._ended[kind] or (held is not None and version <= held.version):
            return
        model = _model(kind, metadata)
        text = orjson.dumps(slim(kind, body))
        self._held[kind][place] = _Held(metadata["uid"], version, model, text)
        if held is not None and held.model != model:
            self._unlink(kind, place, held.model)
        self._models[kind, place[0], model].add(place[1])
        if held is None or held.text != text:
            self._tell(kind, (place[0], model))

    def answered(self, body: Json) -> None:
        """Takes the answer to a request of our own, unless the watch is past it; other kinds are not kept."""
        kind, metadata = body.get("kind"), body.get("metadata", {})
        if kind not in KINDS or (kind != MODEL_DEPLOYMENT and MODEL_LABEL not in metadata.get("labels", {})):
            return
        if int(metadata["resourceVersion"]) > self._seen_to(kind, metadata["namespace"]):
            self.put(body)

    def deleted(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """An object that we deleted is gone, though a watch may still tell of its last days."""
        held = self._held.get(kind, {}).get((namespace, name))
        if held is not None and held.uid == uid:
            self._ended[kind].add(uid)
            self._drop(kind, (namespace, name))

    def remove(self, body: Json) -> None:
        """Takes away what a watch says is gone, unless something newer is known."""
        kind, metadata, place = body["kind"], body["metadata"], _place(body)
        self._ended[kind].discard(metadata["uid"])
        held = self._held[kind].get(place)
        if held is not None and held.version <= int(metadata["resourceVersion"]):
            self._drop(kind, place)

    def reach(self, kind: str, namespace: str, version: str) -> None:
        """The watch of a kind, in a namespace or ("") in all, has told of everything up to this version."""
        self._reached[kind, namespace] = int(version)

    def replace(self, kind: str, namespace: str, version: str) -> Replacement:
        """Begins to take a whole list of a kind, in a namespace or ("") in all, as of a version."""
        if int(version) < self._reached.get((kind, namespace), 0):
            # The API server's own memory was set back: nothing that we know is newer than its list.
            for place in [place for place in self._held[kind] if namespace in ("", place[0])]:
                self._drop(kind, place)
        return Replacement(self, kind, namespace, version)

    def finish(self, kind: str, namespace: str, listed: dict[Place, str], version: str) -> None:
        """Takes away what a whole list lacks; for `Replacement`."""
        places = [place for place in self._held[kind] if namespace in ("", place[0])]
        self._drop_unlisted(kind, places, set(listed), int(version))
        self._ended[kind].intersection_update(listed.values())
        self.reach(kind, namespace, version)

    def replace_of_model(self, kind: str, model: Place, bodies: Iterable[Json], version: str) -> None:
        """Takes a list of what was made for one ModelDeployment, as of a version."""
        places, listed = [(model[0], name) for name in self._models.get((kind, *model), ())], set()
        for body in bodies:
            listed.add(_place(body))
            self.answered(body)
        self._drop_unlisted(kind, places, listed, int(version))

    def _drop_unlisted(self, kind: str, old: list[Place], listed: set[Place], version: int) -> None:
        for place in old:
            held = self._held[kind].get(place)
            # What is newer than the list was made after it.
            if held is not None and place not in listed and held.version <= version:
                self._drop(kind, place)

    def _drop(self, kind: str, place: Place) -> None:
        held = self._held[kind].pop(place)
        self._unlink(kind, place, held.model)

    def _unlink(self, kind: str, place: Place, model: str) -> None:
        names = self._models[kind, place[0], model]
        names.discard(place[1])
        if not names:
            del self._models[kind, place[0], model]
        self._tell(kind, (place[0], model))

    def _tell(self, kind: str, model: Place) -> None:
        # What is left of one that is gone ends by itself: thousands of pods, and nothing to decide.
        if kind == MODEL_DEPLOYMENT or model in self._held[MODEL_DEPLOYMENT]:
            self.on_change(model)

    def _seen_to(self, kind: str, namespace: str) -> int:
        return max(self._reached.get((kind, scope), 0) for scope in (namespace, ""))


class Replacement:
    """A list that comes page by page, so that its objects are never all in memory at a time."""

    def __init__(self, store: Store, kind: str, namespace: str, version: str) -> None:
        self._store = store
        self._kind = kind
        self._namespace = namespace
        self.version = version
        self._listed: dict[Place, str] = {}

    def take(self, bodies: Iterable[Json]) -> None:
        """Takes a page."""
        for body in bodies:
            self._listed[_place(body)] = body["metadata"]["uid"]
            self._store.put(body)

    def finish(self) -> None:
        """The list is complete: what it lacks is gone, unless it was made since."""
        self._store.finish(self._kind, self._namespace, self._listed, self.version)


def _place(body: Json) -> Place:
    return str(body["metadata"]["namespace"]), str(body["metadata"]["name"])


def _read(held: _Held) -> Json:
    body: Json = orjson.loads(held.text)
    body["metadata"]["resourceVersion"] = str(held.version)
    return body


def _model(kind: str, metadata: Json) -> str:
    return str(metadata["name"] if kind == MODEL_DEPLOYMENT else metadata["labels"][MODEL_LABEL])
