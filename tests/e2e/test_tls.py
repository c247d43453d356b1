"""The whole product with certificates on both sides of every connection, and without for strangers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import Product, eventually
from tests.rpc.secret_volume import HOUR, authority, certificate
from twolane.rpc.identity import COMPONENTS
from twolane.rpc.issuing import KeyPair, write_folder
from twolane.rpc.tls import Tls
from twolane.v1 import worker_pb2
from twolane.v1.worker_pb2_grpc import WorkerStub

DEPLOYMENT = "local"
PROCESSES = ("broker", "router", "prefill-0", "decode-0")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`twolane up --tls`."""
    running = Product(tmp_path_factory.mktemp("secured"), "--tls")
    yield running
    assert running.stop() == 0
    assert not (running.folder / "tls").exists()


def _answer(product: Product) -> str:
    client = product.client()
    made = client.completions.create(
        model="twolane-demo", prompt="Once upon a time", max_tokens=8, temperature=0
    )
    return str(made.choices[0].text)


def _ask_worker(product: Product, tls: Tls | None) -> str:
    """Asks a worker for its books as `tls`; the words of the refusal, empty for none."""
    address = f"127.0.0.1:{product.ports('decode-0')['grpc']}"
    if tls is None:
        channel = grpc.insecure_channel(address)
    else:
        shown = tls.current()
        credentials = grpc.ssl_channel_credentials(shown.authorities, shown.key, shown.chain)
        options = [("grpc.ssl_target_name_override", f"worker.{DEPLOYMENT}")]
        channel = grpc.secure_channel(address, credentials, options=options)
    with channel:
        try:
            WorkerStub(channel).Inspect(worker_pb2.InspectRequest(), timeout=10)
        except grpc.RpcError as error:
            return str(error)
    return ""


def _twolane(*args: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "twolane.cli.main", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def _exchange(folder: Path, pair: KeyPair, trusted: list[KeyPair]) -> None:
    """Writes new files beside the old ones and moves them over; the process may look in between."""
    new = folder.with_name(folder.name + ".new")
    write_folder(new, pair, b"".join(each.certificate for each in trusted))
    for path in new.iterdir():
        os.replace(path, folder / path.name)
    new.rmdir()


def test_it_answers_its_own_and_nobody_else(secured: Product, tmp_path: Path) -> None:
    """Plain callers and those of another authority get nothing from a worker."""
    assert _answer(secured)
    assert _ask_worker(secured, Tls(secured.folder / "tls" / "router")) == ""
    assert "UNAVAILABLE" in _ask_worker(secured, None)
    stranger = authority()
    # It trusts us, and is trusted by nobody.
    ours = KeyPair((secured.folder / "tls" / "router" / "ca.crt").read_bytes(), b"")
    folder = tmp_path / "stranger"
    pair = certificate(stranger, "router", DEPLOYMENT)
    write_folder(folder, pair, ours.certificate + stranger.certificate)
    assert "UNAVAILABLE" in _ask_worker(secured, Tls(folder))


def test_the_tools_find_their_way(secured: Product, tmp_path: Path) -> None:
    """Books over TLS, and a verdict on certificates that names the side at fault."""
    folder = str(secured.folder / "tls" / "router")
    broker = f"127.0.0.1:{secured.ports('broker')['grpc']}"
    status, said = _twolane("inspect", "leaks", "--broker", broker, "--tls-dir", folder)
    assert (status, said.split()[0]) == (0, "0"), said
    check = ["inspect", "tls", "--address", broker, "--component", "broker", "--tls-dir"]
    status, said = _twolane(*check, folder)
    assert status == 0
    assert "both sides accept each other" in said
    assert "router.local" in said
    assert "PRIVATE" not in said
    stranger = authority(DEPLOYMENT)
    ours = (secured.folder / "tls" / "router" / "ca.crt").read_bytes()
    write_folder(tmp_path / "s", certificate(stranger, "router", DEPLOYMENT), ours + stranger.certificate)
    status, said = _twolane(*check, str(tmp_path / "s"))
    assert status == 1
    assert "it does not accept our certificate (its ca.crt lacks our authority" in said
    write_folder(tmp_path / "t", certificate(stranger, "router", DEPLOYMENT), stranger.certificate)
    status, said = _twolane(*check, str(tmp_path / "t"))
    assert status == 1
    assert "signed by none of our authorities" in said


def test_an_expired_certificate_keeps_a_process_from_starting(tmp_path: Path) -> None:
    """With words, and as a wrong configuration."""
    signer = authority()
    write_folder(tmp_path / "tls", certificate(signer, "broker", age=2 * HOUR), signer.certificate)
    status, said = _twolane("broker", "--port", "0", "--http-port", "0", "--tls-dir", str(tmp_path / "tls"))
    assert status == 2
    assert "expired at" in said
    assert "renew it" in said


@pytest.mark.slow
def test_authority_and_certificates_change_under_load(
    new_product: Callable[..., Product], tmp_path: Path
) -> None:
    """New authority beside the old one, certificates by the new one, old one out: no request fails."""
    product = new_product("--tls")
    first = _answer(product)
    failures: list[str] = []
    answered = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                assert _answer(product) == first
                answered += 1
            except Exception as error:
                failures.append(repr(error))

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for asker in askers:
        asker.start()
    tls = product.folder / "tls"
    new, before = authority(DEPLOYMENT), KeyPair((tls / "router" / "ca.crt").read_bytes(), b"")
    kept = KeyPair((tls / "router" / "tls.crt").read_bytes(), (tls / "router" / "tls.key").read_bytes())
    write_folder(tmp_path / "old", kept, before.certificate + new.certificate)
    for stage, trusted in enumerate(([before, new], [before, new], [new])):
        for component in COMPONENTS:
            folder = tls / component
            kept = KeyPair((folder / "tls.crt").read_bytes(), (folder / "tls.key").read_bytes())
            pair = kept if stage == 0 else certificate(new, component, DEPLOYMENT)
            _exchange(folder, pair, trusted)
        for name in PROCESSES:
            seen = lambda name=name, stage=stage: product.log(name).count("read again") > stage  # noqa: E731
            eventually(seen)
        reached = answered + 5
        eventually(lambda reached=reached: answered >= reached or bool(failures))  # type: ignore[misc]
    stop.set()
    for asker in askers:
        asker.join(60)
    assert failures == []
    assert _ask_worker(product, Tls(tls / "router")) == ""
    # A certificate of before is refused by now, though its owner trusts the new authority.
    assert "UNAVAILABLE" in _ask_worker(product, Tls(tmp_path / "old"))
    for name in PROCESSES:
        assert "PRIVATE KEY" not in product.log(name)
        assert "not used yet" not in product.log(name) or "read again" in product.log(name)
