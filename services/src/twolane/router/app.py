"""One router, put together: cluster, dispatcher, the HTTP and gRPC fronts, and their ordered end.

`main.py` runs it until a signal comes; tests start it on free ports in their own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import uvicorn
from prometheus_client import CollectorRegistry

from twolane.core.errors import ConfigError, Draining
from twolane.core.model import ModelFingerprint
from twolane.policies.least_wait import PLACEMENT_POLICIES
from twolane.router.auth import read_api_keys
from twolane.router.chat_template import read_chat_template
from twolane.router.cluster import Cluster
from twolane.router.config import RouterConfig
from twolane.router.dispatch import Bounds, Dispatcher
from twolane.router.hold import Hold
from twolane.router.http_protocol import stall_guard
from twolane.router.inference_service import InferenceService
from twolane.router.metrics import RouterMetrics
from twolane.router.model_folder import ModelFolder, read_model_folder
from twolane.router.placing import Placer
from twolane.router.prompts import PromptReader
from twolane.router.routes import make_routes
from twolane.router.serving import Serving
from twolane.router.submission import Submitter
from twolane.router.tokenizer import Tokenizer
from twolane.rpc.server import RpcServer
from twolane.rpc.tls import open_tls
from twolane.telemetry import metrics as telemetry_metrics
from twolane.telemetry.process import write_port_file
from twolane.v1 import inference_pb2_grpc

log = logging.getLogger(__name__)

# Beyond this a connection that is still open is cut at the end.
_CLOSE_TIMEOUT_S = 2.0
_BACKLOG = 4096


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing."""
        yield


class RouterApp:
    """A router.

    Attributes:
        port: HTTP port once started.
        grpc_port: gRPC port once started.
        cluster: workers and prefixes.
        dispatcher: running requests.
    """

    def __init__(self, config: RouterConfig, registry: CollectorRegistry | None = None) -> None:
        """Reads the model folder and the keys.

        Raises:
            ConfigError: something is missing or malformed.
        """
        self._config = config
        registry = telemetry_metrics.registry if registry is None else registry
        folder = read_model_folder(config.model_dir)
        if config.max_model_len:
            folder = replace(folder, max_model_len=min(folder.max_model_len, config.max_model_len))
        self._tokenizer = Tokenizer(config.model_dir, config.tokenizer_threads)
        template = read_chat_template(config.model_dir)
        own = _own_fingerprint(config, folder, self._tokenizer)
        router_id = config.router_id or f"{socket.gethostname()}-{os.getpid()}"
        tls = open_tls(config.tls_dir)
        self.cluster = Cluster(config.broker, own, router_id, tls)
        targets = config.slo_targets
        self.metrics = RouterMetrics(registry, targets)
        policy = PLACEMENT_POLICIES[config.placement](config.short_max_uncached_tokens)
        placer = Placer(self.cluster, policy, targets.strictest_tpot_s)
        self.dispatcher = Dispatcher(
            self.cluster,
            Submitter(self.cluster, placer, targets),
            placer,
            self._tokenizer,
            self.metrics,
            Bounds(
                config.max_waiting, Hold(config.hold_s, config.max_held, config.short_max_uncached_tokens)
            ),
        )
        self.serving = Serving(
            model_name=config.model_name,
            folder=folder,
            tokenizer=self._tokenizer,
            prompts=PromptReader(self._tokenizer, template, folder.vocab_size),
            cluster=self.cluster,
            dispatcher=self.dispatcher,
            metrics=self.metrics,
            keys=read_api_keys(config.api_keys.get_secret_value(), config.api_keys_file),
            request_timeout_s=config.request_timeout_s,
        )
        self._add_gauges()
        self.port, self.grpc_port = config.port, config.grpc_port
        self._public_tls = open_tls(config.http_tls_dir, mutual=False)
        for shown in (tls, self._public_tls):
            if shown is not None:
                shown.watch_expiry(registry)
        self._rpc = RpcServer(
            "router", config.host, config.grpc_port, registry=registry, tls=self._public_tls
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(InferenceService(self.serving), self._rpc.aio)
        self._rpc.add("twolane.v1.Inference")
        self._http = _Server(self._http_config(registry))
        self._tasks: list[asyncio.Task[None]] = []

    def not_ready(self) -> str | None:
        """Why no traffic should come; None when it may."""
        if self.dispatcher.draining:
            return "the router is about to stop"
        return None if self.dispatcher.hold.enabled else self.cluster.not_ready()

    async def start(self) -> None:
        """Listens and begins to follow the cluster.

        Raises:
            ConfigError: a port can't be bound.
        """
        config = self._config
        listener = _listen(config.host, config.port)
        self.port = int(listener.getsockname()[1])
        try:
            self.grpc_port = await self._rpc.start()
        except ConfigError:
            listener.close()
            raise
        self.cluster.start()
        self._tasks = [
            asyncio.create_task(self._http.serve(sockets=[listener]), name="http"),
            asyncio.create_task(self._follow_readiness(), name="readiness"),
            asyncio.create_task(self.dispatcher.follow(), name="hold"),
            asyncio.create_task(self.serving.keys.follow(), name="API keys"),
        ]
        while not self._http.started:
            if self._tasks[0].done():
                self._tasks[0].result()
            await asyncio.sleep(0.01)
        if config.port_file is not None:
            write_port_file(config.port_file, {"http": self.port, "grpc": self.grpc_port})
        log.info("router listens", extra={"http_port": self.port, "grpc_port": self.grpc_port})

    async def stop(self) -> None:
        """Takes nothing new, lets running requests end within the drain timeout, then closes everything."""
        self.dispatcher.draining = True
        await self._rpc.set_ready(False)
        await self.dispatcher.wait_idle(self._config.drain_timeout_s)
        for generation in list(self.dispatcher.running):
            generation.fail(Draining("the router stopped before the answer was complete", retry_after_s=1.0))
        self._http.should_exit = True
        await self._rpc.stop(_CLOSE_TIMEOUT_S)
        http, *others = self._tasks
        for task in others:
            task.cancel()
        await asyncio.gather(http, *others, return_exceptions=True)
        await self.cluster.stop()
        self._tokenizer.close()

    async def _follow_readiness(self) -> None:
        """Tells gRPC health watchers what /readyz says."""
        while True:
            changed = self.cluster.next_change()
            await self._rpc.set_ready(self.not_ready() is None)
            await changed

    def _http_config(self, registry: CollectorRegistry) -> uvicorn.Config:
        config = self._config
        made = uvicorn.Config(
            make_routes(self.serving, config.max_body_bytes, self.not_ready, registry),
            http=stall_guard(config.write_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(_CLOSE_TIMEOUT_S),
        )
        if self._public_tls is not None:
            # Loading would set it from files that are read once.
            made.load()
            made.ssl = self._public_tls.server_context()
        return made

    def _add_gauges(self) -> None:
        dispatcher, cluster, gauge = self.dispatcher, self.cluster, self.metrics.gauge
        gauge("running_requests", "Requests being served.", lambda: len(dispatcher.running))
        gauge("waiting_answers", "Answers whose first token has not come.", lambda: dispatcher.waiting)
        gauge("held_requests", "Requests that wait for workers to start.", lambda: len(dispatcher.hold))
        gauge("workers", "Workers connected.", lambda: sum(s.connected for s in cluster.sessions))
        gauge("prefix_pages", "Pages in the copy of the prefix index.", lambda: len(cluster.prefixes))
        gauge("ready", "1 when traffic may come.", lambda: float(self.not_ready() is None))
        text = "Predicted time of the prefill that waits, over all workers, as reported and sent since."
        self.metrics.gauge_by_lane("prefill_waiting_seconds", text, cluster.waiting_s)


def _own_fingerprint(config: RouterConfig, folder: ModelFolder, tokenizer: Tokenizer) -> ModelFingerprint:
    return ModelFingerprint(
        model=config.model_name,
        architecture="",
        vocab_size=folder.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        weights_sha256="",
        n_layers=0,
        n_kv_heads=0,
        head_dim=0,
        page_tokens=0,
        kv_dtype="",
        max_model_len=folder.max_model_len,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen for HTTP on {host}:{port}: {error.strerror}; "
            "choose another --port, or 0 for any free one",
            param="port",
        ) from error
    listener.setblocking(False)
    return listener
