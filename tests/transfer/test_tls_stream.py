"""Pages between workers that show each other certificates: by TCP and gRPC, on both event loops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from tests.rpc.secret_volume import HOUR, SecretVolume, authority, certificate
from tests.transfer.test_sender import DEADLINE_S, SOURCE, TARGET, Owner, Writer
from twolane.rpc.issuing import KeyPair
from twolane.rpc.tls import Tls
from twolane.transfer.stream_server import HEAD_BYTES
from twolane.v1 import transfer_pb2 as pb

LOOPS = [asyncio.run, uvloop.run]
Run = Callable[[Coroutine[Any, Any, None]], None]


def _always() -> Callable[[], float]:
    times = iter(range(0, 10_000_000, 1000))
    return lambda: float(next(times))


def _tls(made: SecretVolume) -> Tls:
    return Tls(made.folder, clock=_always())


def _volume(folder: Path, pair: KeyPair, *trusted: KeyPair) -> SecretVolume:
    return SecretVolume(folder, pair, trusted)


async def _send(owner: Owner, writer: Writer) -> None:
    """One prompt by TCP, from the offer on; returns when the writer's side has ended."""
    writer.sender.open("r")
    writer.sender.offer(owner.offer(pb.TRANSPORT_TCP))
    writer.compute()
    async with asyncio.timeout(DEADLINE_S):
        await writer.ended


async def _pair(owner_tls: Tls | None, writer_tls: Tls | None) -> tuple[Owner, Writer]:
    owner, writer = Owner(owner_tls), Writer()
    owner.stream_port = await owner.streams.start("127.0.0.1", 0)
    writer.sender.tls = writer_tls
    return owner, writer


async def _end(owner: Owner, writer: Writer) -> None:
    await writer.sender.close()
    await owner.streams.stop()
    await owner.server.stop(0)


@pytest.mark.parametrize("run", LOOPS)
def test_pages_land_by_tls(tmp_path: Path, run: Run) -> None:
    """And go on landing after both sides' certificates and their authority have been exchanged."""
    old, new = authority(), authority()
    mine, theirs = (
        _volume(tmp_path / "a", certificate(old), old),
        _volume(tmp_path / "b", certificate(old), old),
    )

    async def transfer() -> None:
        owner, writer = await _pair(_tls(mine), _tls(theirs))
        await _send(owner, writer)
        assert writer.ended.result() is None
        assert await owner.handover == [42]
        np.testing.assert_array_equal(owner.store.pages[list(TARGET)], writer.store.pages[SOURCE])
        await writer.sender.close()
        for volume in (mine, theirs):
            volume.exchange(certificate(new), [new])
        again = Writer()
        again.sender.tls = writer.sender.tls
        owner.handover = asyncio.get_running_loop().create_future()
        await _send(owner, again)
        assert again.ended.result() is None
        await _end(owner, again)

    run(transfer())


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("stranger", "signed by none of our authorities"),
        ("gullible", "our certificate"),
        ("expired", "our certificate"),
        ("neighbour", "it may not accept our certificate"),
        ("plain", ""),
    ],
)
def test_pages_of_others_never_land(tmp_path: Path, run: Run, who: str, words: str) -> None:
    """Whatever they show: nothing of what they send is looked at, and their side says why."""
    ours, theirs = authority(), authority("other.team.svc")
    owner_tls = _tls(_volume(tmp_path / "owner", certificate(ours), ours))
    shown: dict[str, tuple[KeyPair, list[KeyPair]]] = {
        "stranger": (certificate(theirs), [theirs]),
        "gullible": (certificate(theirs), [ours, theirs]),
        "expired": (certificate(ours), [ours]),
        "neighbour": (certificate(ours, deployment="other.team.svc"), [ours]),
    }

    async def transfer() -> None:
        tls = None
        if who != "plain":
            volume = SecretVolume(tmp_path / "writer", *shown[who])
            tls = _tls(volume)
            # One that would ask for our workers by their name.
            tls.deployment = owner_tls.deployment
            if who == "expired":
                volume.exchange(certificate(ours, age=2 * HOUR), [ours])
        owner, writer = await _pair(owner_tls, tls)
        before = owner.store.pages.copy()
        await _send(owner, writer)
        error = writer.ended.result()
        assert error is not None
        assert error.retryable
        assert words in error.message
        np.testing.assert_array_equal(owner.store.pages, before)
        assert not owner.handover.done()
        await _end(owner, writer)

    run(transfer())


async def test_a_plain_owner_is_not_sent_to(tmp_path: Path) -> None:
    """A writer with certificates sends nothing in the open."""
    signer = authority()
    owner, writer = await _pair(None, _tls(_volume(tmp_path / "w", certificate(signer), signer)))
    await _send(owner, writer)
    error = writer.ended.result()
    assert error is not None
    assert not owner.handover.done()
    await _end(owner, writer)


async def test_one_who_only_connects_is_cut_off(tmp_path: Path) -> None:
    """Bytes that are no handshake end the stream; a frame in plain text is such."""
    signer = authority()
    owner, writer = await _pair(_tls(_volume(tmp_path / "o", certificate(signer), signer)), None)
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", owner.stream_port), timeout=DEADLINE_S) as plain:
        plain.setblocking(False)
        push = pb.PagePush(lease_id="l", fence=1, handover=pb.Handover(prompt_tokens=1)).SerializeToString()
        await loop.sock_sendall(plain, len(push).to_bytes(HEAD_BYTES, "big") + push)
        async with asyncio.timeout(DEADLINE_S):
            answer = await loop.sock_recv(plain, 100)
            # At most TLS's own word for it.
            assert answer == b"" or answer[0] == 21
    assert not owner.handover.done()
    await _end(owner, writer)
