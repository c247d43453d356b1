"""The public ports with certificates: HTTPS and TLS for gRPC, renewed while clients stream."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.router.conftest import left_tasks
from tests.router.scripted_cluster import ScriptedCluster, start_cluster
from tests.rpc.secret_volume import SecretVolume, authority
from twolane.rpc import tls as tls_module
from twolane.rpc.issuing import KeyPair, issue
from twolane.v1 import inference_pb2 as pb
from twolane.v1 import types_pb2
from twolane.v1.inference_pb2_grpc import InferenceStub

DEADLINE_S = 20.0


def _public(signer: KeyPair) -> KeyPair:
    return issue(signer, ["api.example.com"], datetime.now(UTC), timedelta(hours=1))


@dataclass
class Public:
    """A router with HTTPS, and how clients see it."""

    cluster: ScriptedCluster
    volume: SecretVolume
    signer: KeyPair

    def session(self, trusted: KeyPair) -> aiohttp.ClientSession:
        """A client that trusts one authority and looks at the name."""
        context = ssl.create_default_context(cadata=trusted.certificate.decode())
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        return aiohttp.ClientSession(
            f"https://127.0.0.1:{self.cluster.app.port}", connector=connector, timeout=timeout
        )


@pytest.fixture
async def public(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Public]:
    """A router, a broker and a mixed worker."""
    monkeypatch.setattr(tls_module, "CHECK_S", 0.0)
    signer = authority()
    volume = SecretVolume(tmp_path / "tls", _public(signer), [])
    cluster = await start_cluster(model_dir, http_tls_dir=volume.folder)
    await cluster.add_worker("w", types_pb2.ROLE_MIXED)
    await cluster.until(lambda: cluster.app.not_ready() is None)
    yield Public(cluster, volume, signer)
    await cluster.stop()
    await cluster.until(lambda: not left_tasks())


def _ask(session: aiohttp.ClientSession) -> Any:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "stream": True}
    return session.post("/v1/completions", json=body, server_hostname="api.example.com")


async def test_clients_stream_by_https_while_certificates_change(public: Public) -> None:
    """A stream that has begun goes on; the next connection gets the new certificate."""
    new = authority()
    async with (
        public.session(public.signer) as old_client,
        public.session(new) as new_client,
        _ask(old_client) as streaming,
    ):
        assert streaming.status == 200
        assert (await streaming.content.readline()).startswith(b"data:")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _ask(new_client)
        public.volume.exchange(_public(new), [])
        async with _ask(new_client) as answer:
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        assert (await streaming.content.read()).endswith(b"data: [DONE]\n\n")


async def test_plain_http_is_not_answered(public: Public) -> None:
    """Neither by the API nor by probes, which must be told HTTPS."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{public.cluster.app.port}/healthz")
    async with public.session(public.signer) as session:
        async with session.get("/healthz", server_hostname="api.example.com") as answer:
            assert answer.status == 200
        async with session.get("/metrics", server_hostname="api.example.com") as answer:
            assert "twolane_tls_http_certificate_expiry_timestamp_seconds" in await answer.text()


async def test_grpc_clients_need_no_certificate_but_see_ours(public: Public) -> None:
    """The same certificate; plain gRPC is refused."""
    address = f"127.0.0.1:{public.cluster.app.grpc_port}"
    credentials = grpc.ssl_channel_credentials(public.signer.certificate)
    options = [("grpc.ssl_target_name_override", "api.example.com")]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        models = await InferenceStub(channel).ListModels(pb.ListModelsRequest(), timeout=DEADLINE_S)
        assert [model.name for model in models.models] == ["tiny"]
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await InferenceStub(channel).ListModels(pb.ListModelsRequest(), timeout=DEADLINE_S)
