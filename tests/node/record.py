"""What happened to a pool over time, told in one line for each change: for people, and for failures."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from types import TracebackType
from typing import Self

from tests.operator.cluster.kube import Json, Kube, Refused

POLL_S = 2.0


class Record:
    """Watches a WorkerPool and its autoscaler while the `with` block runs, and prints what it saw."""

    def __init__(self, kube: Kube, namespace: str, pool: str, hpa: str) -> None:
        self._kube, self._namespace, self._pool, self._hpa = kube, namespace, pool, hpa
        self._lines: list[str] = []
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="record", daemon=True)
        self.writers: set[str] = set()
        self.largest = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(60.0)
        print("\n".join(self._lines))

    def say(self, words: str) -> None:
        """Adds a line of the caller's."""
        self._lines.append(f"{time.monotonic() - self._began:6.0f} s  {words}")

    def _watch(self) -> None:
        before = ""
        while not self._over.wait(POLL_S):
            with contextlib.suppress(Refused, KeyError):
                now = self._look()
                if now != before:
                    self.say(now)
                    before = now

    def _look(self) -> str:
        names = ("get", f"wp/{self._pool}", f"hpa/{self._hpa}", "-n", self._namespace)
        text = self._kube.kubectl(*names, "--ignore-not-found", "--show-managed-fields", "-o", "json")
        pool, *scalers = json.loads(text)["items"]
        status = pool["status"]
        asked = int(pool["spec"]["replicas"])
        self.largest = max(self.largest, asked)
        self.writers |= {e["manager"] for e in pool["metadata"]["managedFields"] if _owns(e)}
        counts = f"asked {asked}, desired {status['desiredReplicas']}, ready {status['readyReplicas']}"
        return "; ".join([counts, *(_measured(scaler) for scaler in scalers)])


def _owns(entry: Json) -> bool:
    return "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})


def _measured(scaler: Json) -> str:
    found = scaler.get("status", {}).get("currentMetrics") or []
    values = [metric["external"]["current"] for metric in found if "external" in metric]
    shown = ", ".join(value.get("averageValue") or value.get("value", "-") for value in values)
    return f"the autoscaler sees {shown or 'nothing yet'} a worker"
