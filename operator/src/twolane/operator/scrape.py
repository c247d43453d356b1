"""Reads /metrics of pods by their addresses: what the planner and a rollout know of running processes.

A pod is asked at most every few seconds, whoever wants to know; one that does not answer is left out,
and not asked again until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from twolane.operator.resources.shape import Json

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
AGE_S = 4.0
"""A reading so old is taken anew."""
_AT_A_TIME = 32
_LONGEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a reading: the name as exposed (counters end in `_total`), labels, value."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pod said.

    Attributes:
        at_s: when, on the event loop's clock; rates follow from two readings.
        samples: every sample.
    """

    at_s: float
    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum over all samples of the name whose labels have these values; 0 without any."""
        found = (sample for sample in self.samples if sample.name == name)
        return sum(s.value for s in found if all(s.labels.get(key) == want for key, want in labels.items()))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of a name by the values of a label."""
        sums: dict[str, float] = {}
        for sample in self.samples:
            if sample.name == name and label in sample.labels:
                sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
        return sums


class Scraper:
    """Readings of pods, kept for a moment."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._kept: dict[str, tuple[float, Reading | None]] = {}
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    async def read(self, pods: Iterable[Json]) -> dict[str, Reading]:
        """Readings by pod name; pods without an address or an answer are left out."""
        asked = {pod["metadata"]["name"]: url for pod in pods if (url := metrics_url(pod)) is not None}
        readings = await asyncio.gather(*(self._reading(url) for url in asked.values()))
        return {name: reading for name, reading in zip(asked, readings, strict=True) if reading is not None}

    async def close(self) -> None:
        """Closes connections."""
        if self._session is not None:
            await self._session.close()

    async def _reading(self, url: str) -> Reading | None:
        now = asyncio.get_running_loop().time()
        known = self._kept.get(url)
        if known is not None and now - known[0] < AGE_S:
            return known[1]
        async with self._slots:
            reading = await self._fetch(url)
        self._kept[url] = (now, reading)
        # Addresses of pods that ended are not asked for any more.
        self._kept = {key: kept for key, kept in self._kept.items() if now - kept[0] < 10 * AGE_S}
        return reading

    async def _fetch(self, url: str) -> Reading | None:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            async with self._session.get(url) as answer:
                answer.raise_for_status()
                text = await _text(answer)
            return Reading(asyncio.get_running_loop().time(), _parse(text))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            log.debug("no metrics", extra={"url": url, "reason": str(error) or type(error).__name__})
            return None


async def _text(answer: aiohttp.ClientResponse) -> str:
    """Raises ValueError when it is longer than any process of ours would write."""
    body = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > _LONGEST_BYTES:
            raise ValueError(f"more than {_LONGEST_BYTES} bytes of metrics")
    return body.decode()


def metrics_url(pod: Json) -> str | None:
    """Where a pod's metrics are: the port named http of our container; None before it has an address."""
    address = pod.get("status", {}).get("podIP")
    if not address or pod.get("status", {}).get("phase") != "Running":
        return None
    host = f"[{address}]" if ":" in address else address
    for container in pod.get("spec", {}).get("containers", []):
        for port in container.get("ports", []) if container["name"] == "twolane" else []:
            if port.get("name") == "http":
                return f"http://{host}:{port['containerPort']}/metrics"
    return None


def _parse(text: str) -> tuple[Sample, ...]:
    """Raises ValueError when the text is no exposition."""
    families = text_string_to_metric_families(text)
    return tuple(Sample(s.name, s.labels, s.value) for family in families for s in family.samples)
