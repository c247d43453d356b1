"""Runs one replica of the operator: `twolane operator`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twolane.core.errors import ConfigError, Unavailable
from twolane.operator.apply import Applier
from twolane.operator.certificate_keeper import CertificateKeeper, Rights
from twolane.operator.cluster import Cluster
from twolane.operator.config import OperatorConfig
from twolane.operator.connection import connect, namespace_of_pod
from twolane.operator.definitions import upgrade_definitions
from twolane.operator.events import Recorder
from twolane.operator.lease import Elector
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.observe import observe, read_anew
from twolane.operator.observed import Observed
from twolane.operator.plan import plan
from twolane.operator.planner_keeper import PlannerKeeper
from twolane.operator.reconciler import Looks, Reconciler
from twolane.operator.scrape import Scraper
from twolane.operator.watches import Watches
from twolane.telemetry.logs import configure_logging
from twolane.telemetry.metrics import registry as metric_registry
from twolane.telemetry.probes import ProbeServer
from twolane.telemetry.process import stop_requested, write_port_file

log = logging.getLogger(__name__)

# A library that logs every request.
_TALKATIVE = ("urllib3",)


class Operator:
    """One replica, put together."""

    def __init__(self, config: OperatorConfig, cluster: Cluster, metrics: OperatorMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._identity = config.identity or f"{socket.gethostname()}-{os.getpid()}"
        applier = Applier(cluster, Recorder(cluster, self._identity), metrics)
        decide = partial(plan, default_image=config.image, default_redis=config.default_redis)
        self._scraper = Scraper()
        rights = Rights(secrets=config.tls_secrets, cert_manager=config.tls_cert_manager)
        keeper = CertificateKeeper(cluster, rights)
        planner = PlannerKeeper(cluster, self._scraper)

        async def look(namespace: str, name: str) -> Observed | None:
            observed = await observe(cluster.store, self._scraper, namespace, name)
            if observed is None:
                return None
            # Before the plan: a pod's Secret should be there before the pod.
            certificates = await keeper.keep(observed)
            planned = await planner.keep(observed, asyncio.get_running_loop().time())
            return replace(observed, certificates=certificates, planned=planned)

        looks = Looks(look, partial(read_anew, cluster))
        self._reconciler = Reconciler(looks, applier, decide, metrics, config.resync_s)
        cluster.store.on_change = self._reconciler.wake
        self._cluster = cluster
        self._elector = self._make_elector(cluster) if config.leader_election else None

    def _make_elector(self, cluster: Cluster) -> Elector:
        namespace = self._config.lease_namespace or namespace_of_pod()
        if not namespace:
            raise ConfigError(
                "outside of a cluster give --lease-namespace, or --no-leader-election with one replica",
                param="lease_namespace",
            )
        return Elector(cluster, namespace, self._config.lease_name, self._identity)

    async def run(self, stop: asyncio.Event) -> None:
        """Leads, whenever no other replica does, until `stop`.

        Raises:
            Unavailable: a part ended that never should; the process must start anew.
        """
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            while not stop.is_set():
                await self._term(stop, stopped)
        finally:
            stopped.cancel()
            await self._scraper.close()
            if self._elector is not None:
                await self._elector.release()

    async def _term(self, stop: asyncio.Event, stopped: asyncio.Task[bool]) -> None:
        """Waits for the lead, then works until it is lost or the end is asked for."""
        if self._elector is not None:
            lead = asyncio.create_task(self._elector.lead(), name="candidate")
            await asyncio.wait({lead, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await _end(lead)
                return
            lead.result()
        self._metrics.leading.set(1)
        parts = {asyncio.create_task(self._work(), name="reconciler")}
        lease = asyncio.create_task(self._elector.keep(), name="lease") if self._elector else stopped
        try:
            done, _ = await asyncio.wait({stopped, lease, *parts}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Nothing may be written any more once another may lead.
            await _end(*parts, *({lease} - {stopped}))
            self._metrics.leading.set(0)
        failed = [task for task in done if task not in (stopped, lease)]
        if failed and not stop.is_set():
            raise Unavailable(f"{failed[0].get_name()} ended: {failed[0].exception()}")

    async def _work(self) -> None:
        """Watches, and looks at what changes once everything is known."""
        watches = Watches(self._cluster, self._config.namespace_list)
        async with asyncio.TaskGroup() as group:
            group.create_task(watches.run())
            await watches.complete()
            await self._reconciler.run(self._config.workers)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def serve(config: OperatorConfig) -> None:
    """Serves probes and runs until SIGTERM or SIGINT.

    Raises:
        TwolaneError: no cluster, a port that is taken, or a part that ended.
    """
    stop = stop_requested()
    metrics = OperatorMetrics()
    cluster = await connect(metrics)
    probes = ProbeServer(config.host, config.http_port, metric_registry, lambda: None)
    try:
        operator = Operator(config, cluster, metrics)
        port = await probes.start()
        if config.port_file is not None:
            write_port_file(config.port_file, {"http": port})
        if config.definitions_dir is not None:
            await upgrade_definitions(cluster, config.definitions_dir)
        await operator.run(stop)
    finally:
        await probes.stop()
        await cluster.close()


def main(argv: Sequence[str]) -> int:
    """Runs the operator; returns the exit status."""
    config = OperatorConfig.from_args(argv)
    configure_logging("operator", config.log_level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    asyncio.run(serve(config))
    return 0
