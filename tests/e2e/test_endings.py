"""However a request or a process ends, clients hear it and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest

from tests.e2e.conftest import Product, eventually

LONG: Any = {
    "model": "twolane-demo",
    "messages": [{"role": "user", "content": "Tell me a long story."}],
    "max_completion_tokens": 3000,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


def free_everywhere(product: Product) -> bool:
    """Whether neither worker holds a page, a request or a lease."""
    books = [product.books(name) for name in ("prefill-0", "decode-0")]
    return all(not each.held_pages and not each.requests and not each.lease_ids for each in books)


def test_a_disconnect_frees_pages_on_both_workers(product: Product) -> None:
    """The client closes the stream in the middle: a moment later every page is free."""
    stream = product.client().chat.completions.create(**LONG)
    for _ in range(5):
        next(stream)
    assert product.books("decode-0").held_pages > 0
    stream.close()
    eventually(lambda: free_everywhere(product))


def test_a_disconnect_while_waiting_frees_pages(product: Product) -> None:
    """A client that asked for the whole answer at once and hangs up stops the work, too."""
    target = urlsplit(product.url)
    body = json.dumps({**LONG, "stream": False, "ignore_eos": True, "extra_body": None} | {}).replace(
        ', "extra_body": null', ""
    )
    with socket.create_connection((target.hostname or "", target.port or 0)) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        eventually(lambda: product.books("decode-0").held_pages > 0)
    eventually(lambda: free_everywhere(product))


def test_the_first_token_comes_while_the_decode_worker_stands_still(product: Product) -> None:
    """It goes from the prefill worker to the client: neither lease nor transfer is waited for."""
    decode = product.pid("decode-0")
    os.kill(decode, signal.SIGSTOP)
    try:
        stream = product.client().chat.completions.create(**LONG)
        text = ""
        while not text:
            text = next(stream).choices[0].delta.content or ""
    finally:
        os.kill(decode, signal.SIGCONT)
    assert (next(stream).choices[0].delta.content or "") != ""
    stream.close()
    eventually(lambda: free_everywhere(product))


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
def test_a_killed_worker_ends_its_requests_with_a_clear_error(
    new_product: Callable[..., Product], victim: str
) -> None:
    """The stream ends with an error that names the loss, never with a normal finish; the launcher stops."""
    product = new_product()
    stream = product.client().chat.completions.create(**LONG)
    next(stream)
    if victim == "prefill-0":
        os.kill(product.pid("decode-0"), signal.SIGSTOP)
        stream = product.client().chat.completions.create(**LONG)
    pid, decode = product.pid(victim), product.pid("decode-0")
    os.kill(pid, signal.SIGKILL)
    if victim == "prefill-0":
        os.kill(decode, signal.SIGCONT)
    reasons: list[str | None] = []
    with pytest.raises(openai.APIError):
        reasons.extend(choice.finish_reason for chunk in stream for choice in chunk.choices)
    assert set(reasons) <= {None}
    assert product.process.wait(60) == 1
    assert victim in product.output


def test_ctrl_c_leaves_nothing_behind(new_product: Callable[..., Product]) -> None:
    """Not a process, not a segment, not a port file; a running stream may end first."""
    before = set(Path("/dev/shm").iterdir())
    product = new_product()
    children = psutil.Process(product.process.pid).children(recursive=True)
    assert len(children) >= 4
    product.client().chat.completions.create(**LONG)
    assert product.stop() == 0
    assert [
        child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    ] == []
    assert set(Path("/dev/shm").iterdir()) <= before
    assert list(product.folder.glob("*.ports.json")) == []


def test_a_killed_launcher_takes_its_children_along(new_product: Callable[..., Product]) -> None:
    """Even SIGKILL leaves no orphan."""
    product = new_product("--mixed", "1")
    children = psutil.Process(product.process.pid).children(recursive=True)
    product.process.kill()
    product.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
