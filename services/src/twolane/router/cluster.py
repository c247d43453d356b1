"""The router's picture of the cluster: the broker's table of workers, kept up to date by its Watch.

It opens a session to every worker that fits this router's model, keeps the copy of the prefix index,
and says whether the router can serve. When the broker is lost the picture stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable

import grpc.aio

from twolane.core.errors import Incompatible, Internal, InvalidRequest, TwolaneError, Unavailable
from twolane.core.model import ModelFingerprint
from twolane.core.request import Lane, Role
from twolane.router.prefix_index import PrefixIndex
from twolane.router.sessions import FIRST_PAUSE_S, LONGEST_PAUSE_S, WorkerSession
from twolane.rpc.channel import open_channel
from twolane.rpc.convert import fingerprint_from_proto
from twolane.rpc.errors import to_twolane_error
from twolane.rpc.tls import Tls
from twolane.rpc.words import lane_from_proto, role_from_proto
from twolane.v1 import broker_pb2, broker_pb2_grpc, worker_pb2

log = logging.getLogger(__name__)

KEEP_MISSING_S = 30.0
"""How long a worker that the broker misses is kept while its session lives, as a last resort: a broker
that has just started knows nobody yet, and on a busy machine heartbeats come late."""


class Cluster:
    """Workers, their sessions and their prefixes.

    Attributes:
        prefixes: who has which page cached.
        watching: the broker's stream is up and its snapshot has come.
    """

    def __init__(
        self, broker_address: str, own: ModelFingerprint, router_id: str, tls: Tls | None = None
    ) -> None:
        """`own`: model, vocab_size and tokenizer_sha256 count, the rest is learned from workers.

        With `tls` broker and workers are reached by mutual TLS, else in plain text.
        """
        self._tls = tls
        self._following: asyncio.Task[None] | None = None
        self.prefixes = PrefixIndex()
        self.watching = False
        self._broker_address = broker_address
        self._own = own
        self._reference: ModelFingerprint | None = None
        self._router_id = router_id
        self._hello = worker_pb2.Hello(router_id=router_id, tokenizer_sha256=own.tokenizer_sha256)
        self._sessions: dict[str, WorkerSession] = {}
        self._leaving: set[WorkerSession] = set()
        self._refused: dict[str, str] = {}
        self._refused_infos: dict[str, broker_pb2.WorkerInfo] = {}
        self._missing: set[WorkerSession] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def sessions(self) -> Iterable[WorkerSession]:
        """Sessions with every worker of the table."""
        return self._sessions.values()

    def waiting_s(self, lane: Lane) -> float:
        """Seconds of a lane's prefill predicted to wait, over all workers that are connected."""
        return sum(s.books.waiting_s()[lane] for s in self.sessions if s.connected)

    @property
    def fingerprint(self) -> ModelFingerprint | None:
        """What the workers run; None until the first one is known."""
        return self._reference

    def session(self, worker_id: str) -> WorkerSession:
        """The session with a worker that placement chose."""
        return self._sessions[worker_id]

    def doubted(self, session: WorkerSession) -> bool:
        """Whether the broker misses a worker that is connected here."""
        return session in self._missing

    def start(self) -> None:
        """Begins to follow the broker."""
        self._task = asyncio.create_task(self._run(), name="cluster watch")
        if self._tls is not None:
            self._following = asyncio.create_task(self._tls.follow(), name="certificates")

    async def stop(self) -> None:
        """Closes the watch and all sessions."""
        if self._following is not None:
            self._following.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        everyone = [*self._sessions.values(), *self._leaving]
        await asyncio.gather(*(session.stop() for session in everyone))

    def not_ready(self) -> str | None:
        """Why the router can't serve, in words; None when it can.

        A broker that is away does not matter while workers are connected: it would take every router out
        of service at once for nothing.
        """
        roles = {role_from_proto(s.info.role) for s in self._sessions.values() if s.accepts}
        if Role.MIXED in roles or {Role.PREFILL, Role.DECODE} <= roles:
            return None
        if not self.watching:
            return f"the broker at {self._broker_address} can't be reached"
        missing = [role.value for role in (Role.PREFILL, Role.DECODE) if role not in roles]
        reason = f"no {' and no '.join(missing)} worker is connected"
        problems = dict(self._refused)
        problems |= {s.worker_id: s.problem for s in self._sessions.values() if not s.connected}
        return "; ".join([reason, *(f"{worker}: {why}" for worker, why in sorted(problems.items()))])

    def next_change(self) -> asyncio.Future[None]:
        """Done with the next change of any worker, of the watch or of the table.

        Asked for before one looks, no change in between is missed.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def apply(self, event: broker_pb2.ClusterEvent) -> None:
        """Takes a change, or the snapshot that replaces everything."""
        if event.snapshot:
            present = {info.worker_id for info in event.workers}
            for worker_id in {*self._sessions, *self._refused} - present:
                self._miss(worker_id)
            self.prefixes.clear()
        for worker_id in event.gone:
            self._miss(worker_id)
            self.prefixes.drop(worker_id)
        for info in event.workers:
            self._update(info)
        self._reconsider()
        for delta in event.prefixes:
            # "removed" first: a page may leave and come back between two messages.
            self.prefixes.remove(delta.worker_id, delta.removed)
            self.prefixes.add(delta.worker_id, delta.added)
        self._notify()

    def _update(self, info: broker_pb2.WorkerInfo) -> None:
        known = self._sessions.get(info.worker_id)
        same = known is not None and known.info.incarnation == info.incarnation
        if known is not None and same and known.info.address == info.address:
            known.info = info
            self._missing.discard(known)
            return
        refused_before = self._refused.get(info.worker_id)
        self._remove(info.worker_id)
        try:
            role_from_proto(info.role)
            lane_from_proto(info.lane)
            self._check(fingerprint_from_proto(info.fingerprint))
        except (Incompatible, InvalidRequest) as error:
            self._refused[info.worker_id] = error.message
            self._refused_infos[info.worker_id] = info
            if error.message != refused_before:
                log.error("worker refused", extra={"worker_id": info.worker_id, "error": error.message})
            return
        session = WorkerSession(info, self._hello, self._check, self._notify, self._tls)
        self._sessions[info.worker_id] = session
        session.start()

    def _miss(self, worker_id: str) -> None:
        session = self._sessions.get(worker_id)
        if session is None or not session.accepts:
            self._remove(worker_id)
        elif session not in self._missing:
            self._missing.add(session)
            asyncio.get_running_loop().call_later(KEEP_MISSING_S, self._drop_missing, session)

    def _drop_missing(self, session: WorkerSession) -> None:
        if session in self._missing and self._sessions.get(session.worker_id) is session:
            self._remove(session.worker_id)
            self._reconsider()
            self._notify()

    def _reconsider(self) -> None:
        """With nobody left to agree with, a worker that was refused may do."""
        if not self._sessions:
            for info in list(self._refused_infos.values()):
                self._update(info)

    def _remove(self, worker_id: str) -> None:
        self._refused.pop(worker_id, None)
        self._refused_infos.pop(worker_id, None)
        self.prefixes.drop(worker_id)
        session = self._sessions.pop(worker_id, None)
        if session is not None:
            self._missing.discard(session)
            self._leaving.add(session)
            session.retire(self._leaving.discard)
        if not self._sessions:
            # Nobody is left that a new kind of worker would have to agree with.
            self._reference = None

    def _check(self, fingerprint: ModelFingerprint) -> None:
        """Raises Incompatible unless the worker can serve this router's requests beside the others."""
        differences = [
            f"{name} {theirs!r} != {ours!r}"
            for name, theirs, ours in (
                ("model", fingerprint.model, self._own.model),
                ("vocab_size", fingerprint.vocab_size, self._own.vocab_size),
                ("tokenizer_sha256", fingerprint.tokenizer_sha256, self._own.tokenizer_sha256),
            )
            if theirs != ours
        ]
        if self._reference is not None and not differences:
            differences = fingerprint.differences(self._reference)
        if differences:
            raise Incompatible("the worker differs from this router or its peers: " + ", ".join(differences))
        self._reference = fingerprint

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            error = await self._watch_once()
            if self.watching:
                log.warning("broker lost", extra={"error": error.message})
            self.watching = False
            self._notify()
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _watch_once(self) -> TwolaneError:
        """One stream from its opening to its end; returns why it ended."""
        channel = open_channel(self._broker_address, self._tls, "broker")
        try:
            stub = broker_pb2_grpc.BrokerStub(channel)
            request = broker_pb2.WatchRequest(model=self._own.model, watcher_id=self._router_id)
            async for event in stub.Watch(request):
                self.apply(event)
                if not self.watching:
                    self.watching = True
                    log.info("broker connected", extra={"address": self._broker_address})
            return Unavailable("the broker closed the watch")
        except grpc.aio.AioRpcError as error:
            return to_twolane_error(error)
        except Exception:
            log.exception("the watch failed")
            return Internal("the watch of the broker failed; the log says why")
        finally:
            await channel.close()
