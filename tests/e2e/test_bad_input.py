"""Whatever a client sends, the answer says what is wrong and the product goes on."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Product, eventually

CHAT = "/v1/chat/completions"


def post(product: Product, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a raw POST."""
    request = urllib.request.Request(
        product.url + path, data=body, headers={"content-type": "application/json"} | headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def chat(**fields: Any) -> bytes:
    """A chat body."""
    body = {"model": "twolane-demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    return json.dumps(body | fields).encode()


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        pytest.param(b"", 400, None, id="no body"),
        pytest.param(b"{", 400, None, id="invalid JSON"),
        pytest.param(b'{"model": "\xff"}', 400, None, id="invalid UTF-8"),
        pytest.param(b"[]", 400, None, id="no object"),
        pytest.param(chat(messages=[]), 400, "messages", id="no messages"),
        pytest.param(chat(messages=[{"role": "pope", "content": "x"}]), 400, "messages", id="unknown role"),
        pytest.param(chat(max_tokens=-1), 400, "max_tokens", id="negative max tokens"),
        pytest.param(chat(max_tokens=10**9), 400, "max_tokens", id="more than the context"),
        pytest.param(chat(temperature="hot"), 400, "temperature", id="wrong type"),
        pytest.param(chat(n=0), 400, "n", id="no choices"),
        pytest.param(chat(n=10_000), 400, "n", id="too many choices"),
        pytest.param(chat(stop=["x"] * 10_000), 400, "stop", id="10,000 stop strings"),
        pytest.param(chat(colour="red"), 400, "colour", id="unknown field"),
        pytest.param(chat(top_p=0), 400, "top_p", id="empty nucleus"),
        pytest.param(chat(model="gpt-9"), 404, "model", id="unknown model"),
        pytest.param(
            chat(messages=[{"role": "user", "content": "word " * 20_000}]), 413, None, id="too long"
        ),
        pytest.param(b" " * (10 << 20), 413, None, id="10 MB body"),
    ],
)
def test_bad_chat_requests_are_explained(
    product: Product, body: bytes, status: int, param: str | None
) -> None:
    """OpenAI-shaped errors with the field at fault; the next good request is answered."""
    got, answer = post(product, CHAT, body)
    assert got == status, answer
    error = answer["error"]
    assert len(error["message"]) > 10
    if param is not None:
        assert str(error["param"]).split(".")[0].split("[")[0] == param
    assert post(product, CHAT, chat())[0] == 200


def test_an_empty_completion_prompt_is_refused_or_answered(product: Product) -> None:
    """An empty prompt has no token to start from: 400 that names it."""
    got, answer = post(
        product, "/v1/completions", json.dumps({"model": "twolane-demo", "prompt": []}).encode()
    )
    assert (got, answer["error"]["param"]) == (400, "prompt")


def test_unknown_paths_and_methods(product: Product) -> None:
    """404 and 405 in the same shape."""
    assert post(product, "/v1/nothing", b"{}")[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(product.url + CHAT, timeout=10)


def test_api_keys(new_product: Callable[..., Product]) -> None:
    """Without the key nothing is answered but probes, and the key is in no log."""
    product = new_product("--mixed", "1", TWOLANE_UP_API_KEY="sk-very-secret-key")
    assert post(product, CHAT, chat())[0] == 401
    assert post(product, CHAT, chat(), authorization="Bearer wrong")[0] == 401
    assert post(product, CHAT, chat(), authorization="Bearer sk-very-secret-key")[0] == 200
    assert urllib.request.urlopen(product.url + "/healthz", timeout=10).status == 200
    assert "sk-very-secret-key" not in product.log("router") + product.log("mixed-0") + product.output


def test_a_client_that_never_reads_is_cut_off(new_product: Callable[..., Product]) -> None:
    """Its request ends and its pages are free, while others are served."""
    product = new_product(TWOLANE_ROUTER_WRITE_TIMEOUT_S="1")
    target = urlsplit(product.url)
    body = chat(stream=True, max_tokens=4000, ignore_eos=True, n=8, logprobs=True, top_logprobs=20)
    with socket.create_connection((target.hostname or "", target.port or 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        deaf.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: product.books("decode-0").held_pages > 0)
        assert post(product, CHAT, chat())[0] == 200
        eventually(lambda: product.books("decode-0").held_pages == 0, deadline_s=60)
        assert dict(product.books("decode-0").requests) == {}
