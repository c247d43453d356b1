"""Two real workers and a broker with certificates: pages, leases and tokens, while all of these change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.secret_volume import SecretVolume, authority, certificate
from tests.worker.brokers import BrokerProcess
from tests.worker.conftest import Oracle
from tests.worker.stack import Pair, RouterEnd, until
from twolane.rpc import tls as tls_module
from twolane.rpc.identity import COMPONENTS, Component
from twolane.rpc.issuing import KeyPair
from twolane.rpc.tls import Tls
from twolane.transfer.transports import InlineCodec
from twolane.v1 import transfer_pb2


class Deployment:
    """Mounted Secrets of every component."""

    def __init__(self, folder: Path) -> None:
        self.authority = authority()
        self.volumes: dict[Component, SecretVolume] = {
            component: SecretVolume(
                folder / component, certificate(self.authority, component), [self.authority]
            )
            for component in COMPONENTS
        }

    def exchange(self, signer: KeyPair, *trusted: KeyPair) -> None:
        """New certificates for everybody."""
        for component, volume in self.volumes.items():
            volume.exchange(certificate(signer, component), trusted)


@pytest.fixture
async def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Deployment, str]]:
    """Certificates, and the address of a broker that has its own; every look at the files is due."""
    monkeypatch.setattr(tls_module, "CHECK_S", 0.0)
    deployment = Deployment(tmp_path / "tls")
    broker = BrokerProcess(tmp_path / "broker", "--tls-dir", str(deployment.volumes["broker"].folder))
    await broker.start()
    yield deployment, broker.address
    await broker.kill()


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
async def test_answers_stay_right_while_the_authority_changes(
    secured: tuple[Deployment, str],
    new_worker: Callable[..., Any],
    oracle: Oracle,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sessions of before go on; pages, offers and leases after it take new connections where they must."""
    deployment, broker = secured
    names = iter(f"host-{index}" for index in range(10_000))
    monkeypatch.setattr("twolane.worker.process.host_id", lambda: next(names))
    if transport == "grpc":
        inline = transfer_pb2.TRANSPORT_GRPC
        monkeypatch.setattr("twolane.worker.process.codecs", lambda store: {inline: InlineCodec(store)})
    folder = deployment.volumes["worker"].folder
    workers = [await new_worker(role, broker, tls_dir=folder) for role in ("prefill", "decode")]
    routers = [RouterEnd(worker, Tls(deployment.volumes["router"].folder)) for worker in workers]
    for worker, router in zip(workers, routers, strict=True):
        await worker.registered()
        await router.open()
    pair = Pair(workers[0], workers[1], (routers[0], routers[1]))
    old, new = deployment.authority, authority()
    for turn, (signer, trusted) in enumerate(
        ((old, [old]), (old, [old, new]), (new, [old, new]), (new, [new]))
    ):
        deployment.exchange(signer, *trusted)
        # A stream that is up would do: this one must be made anew.
        for stream in pair.prefill.process._sender._streams.values():
            await stream.close()
        tokens = list(range(10 + turn, 40 + turn))
        first, second = await pair.ask(f"r{turn}", tokens)
        await until(lambda second=second: second.over)  # type: ignore[misc]
        assert first.tokens + second.tokens == oracle.answer(tokens, 12)
    landed = pair.decode.process._transfers.landed_bytes.labels(transport)
    assert landed._value.get() > 0
    assert workers[0].process.why_not_ready() is None
    for router in routers:
        await router.close()
