"""gRPC between two processes of one deployment, and nobody else; certificates change under running calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tests.rpc.conftest import Echo, StartEcho
from tests.rpc.secret_volume import HOUR, SecretVolume, authority, certificate
from twolane.rpc.channel import open_channel, to_twolane_error
from twolane.rpc.issuing import KeyPair
from twolane.rpc.tls import Tls

DEADLINE_S = 10.0
Volume = Callable[..., SecretVolume]


def _always() -> Callable[[], float]:
    """A clock on which every look at the files is due."""
    times = iter(range(0, 10_000_000, 1000))
    return lambda: float(next(times))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """Makes mounted Secrets."""
    made: list[SecretVolume] = []

    def make(pair: KeyPair, *trusted: KeyPair) -> SecretVolume:
        made.append(SecretVolume(tmp_path / f"tls-{len(made)}", pair, trusted))
        return made[-1]

    return make


def _tls(made: SecretVolume) -> Tls:
    return Tls(made.folder, clock=_always())


async def _refusal(echo: Echo) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo.say("Unary", "x", timeout=DEADLINE_S)
    error = to_twolane_error(caught.value)
    return f"{error.code}: {error.message}"


async def test_two_of_one_deployment_understand_each_other(start_echo: StartEcho, volume: Volume) -> None:
    """In every shape of call."""
    signer = authority()
    worker, router = volume(certificate(signer), signer), volume(certificate(signer, "router"), signer)
    echo = await start_echo(lambda text, _: text.upper(), server_tls=_tls(worker), client_tls=_tls(router))
    for name in ("Unary", "Stream", "Written", "Collect", "Talk"):
        assert await echo.say(name, "hello", timeout=DEADLINE_S) == ["HELLO"]


async def test_plain_text_and_tls_do_not_mix(start_echo: StartEcho, volume: Volume) -> None:
    """Each side's words say that the other one is to be looked at."""
    signer = authority()
    tls = _tls(volume(certificate(signer), signer))
    secured = await start_echo(lambda text, _: text, server_tls=tls)
    assert "it speaks TLS and we do not" in await _refusal(secured)
    plain = await start_echo(lambda text, _: text, client_tls=tls)
    assert "the peer speaks plain text: give it --tls-dir" in await _refusal(plain)


async def test_an_authority_of_another_deployment_is_trusted_by_neither_side(
    start_echo: StartEcho, volume: Volume
) -> None:
    """The client sees a stranger; a client that trusts us all the same is hung up on."""
    ours, theirs = authority(), authority("other.team.svc")
    server = _tls(volume(certificate(ours), ours))
    stranger = _tls(volume(certificate(theirs), theirs))
    echo = await start_echo(lambda text, _: text, server_tls=server, client_tls=stranger)
    assert "signed by none of our authorities" in await _refusal(echo)
    gullible = _tls(volume(certificate(theirs), theirs, ours))
    echo = await start_echo(lambda text, _: text, server_tls=server, client_tls=gullible)
    assert "it does not accept our certificate" in await _refusal(echo)


async def test_one_authority_for_two_deployments_keeps_them_apart(
    start_echo: StartEcho, volume: Volume
) -> None:
    """By the names in the certificates, on both sides."""
    shared = authority()
    server = _tls(volume(certificate(shared), shared))
    other = _tls(volume(certificate(shared, "router", "other.team.svc"), shared))
    echo = await start_echo(lambda text, _: text, server_tls=server, client_tls=other)
    assert "for another component or deployment" in await _refusal(echo)
    # It may lie about whom it wants to reach.
    other.deployment = server.deployment
    echo = await start_echo(lambda text, _: text, server_tls=server, client_tls=other)
    answer = await _refusal(echo)
    assert answer.startswith("forbidden: your certificate is for router.other.team.svc")


async def test_a_worker_is_no_broker(start_echo: StartEcho, volume: Volume) -> None:
    """Whoever dials a broker won't talk to a worker that has taken its address."""
    signer = authority()
    tls = _tls(volume(certificate(signer), signer))
    echo = await start_echo(lambda text, _: text, server_tls=tls)
    echo.channel = open_channel(f"127.0.0.1:{echo.server.port}", tls, "broker")
    assert "for another component or deployment" in await _refusal(echo)


async def test_an_expired_certificate_is_named_as_such(start_echo: StartEcho, volume: Volume) -> None:
    """The one that a peer shows; an own one that expires while the process runs is in its own log."""
    signer = authority()
    made = volume(certificate(signer), signer)
    server = _tls(made)
    client = _tls(volume(certificate(signer, "router"), signer))
    echo = await start_echo(lambda text, _: text, server_tls=server, client_tls=client)
    made.exchange(certificate(signer, age=2 * HOUR), [signer])
    assert "the peer's certificate has expired" in await _refusal(echo)


@pytest.mark.parametrize("what", ["certificates", "authority"])
async def test_certificates_change_under_running_calls(
    start_echo: StartEcho, volume: Volume, what: str
) -> None:
    """Calls that run go on, those that begin use the new ones, and not one fails in between."""
    old, new = authority(), authority()
    worker, router = volume(certificate(old), old), volume(certificate(old, "router"), old)
    echo = await start_echo(lambda text, _: text, server_tls=_tls(worker), client_tls=_tls(router))
    talk: Any = echo.method("Talk")()
    await talk.write(StringValue(value="before"))
    assert (await talk.read()).value == "before"
    stages = (
        [(old, [old])] * 3 if what == "certificates" else [(old, [old, new]), (new, [old, new]), (new, [new])]
    )
    stop = asyncio.Event()

    async def ask() -> int:
        asked = 0
        while not stop.is_set():
            assert await echo.say("Unary", "x", timeout=DEADLINE_S) == ["x"]
            asked += 1
        return asked

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    for signer, trusted in stages:
        for made, component in ((worker, "worker"), (router, "router")):
            made.exchange(certificate(signer, component), trusted)  # type: ignore[arg-type]
            for _ in range(20):
                await echo.say("Unary", "y", timeout=DEADLINE_S)
    stop.set()
    assert min(await asyncio.gather(*askers)) > 10
    await talk.write(StringValue(value="after"))
    assert (await talk.read()).value == "after"
    talk.cancel()
    if what == "authority":
        late = _tls(volume(certificate(old, "router"), old, new))
        async with open_channel(f"127.0.0.1:{echo.server.port}", late) as channel:
            echo_late = Echo(echo.server, channel, echo.registry)
            assert "it does not accept our certificate" in await _refusal(echo_late)
