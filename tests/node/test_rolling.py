"""A change of what workers run: two revisions side by side, and no client sees it."""

from __future__ import annotations

import pytest

from tests.node.product import COMPONENT, START_S, Model
from tests.operator.cluster.kube import eventually

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


def test_a_rolling_update_fails_no_request(chat: Model) -> None:
    """Other pages, another revision, the same answers; nothing of the old one is left."""
    before = chat.object()["status"]["revision"]
    with chat.load() as load:
        load.wait_for(5)
        chat.patch(engine={"pageTokens": 32})
        eventually(lambda: chat.object()["status"]["servingRevisions"] not in ([before], []), START_S)
        eventually(lambda: _revisions(chat) == {chat.object()["status"]["revision"]}, START_S)
        load.wait_for(5)
    load.expect_no_failure()
    assert chat.object()["status"]["revision"] != before


def _revisions(chat: Model) -> set[str]:
    return {pod["metadata"]["labels"]["serving.twolane.dev/revision"] for pod in chat.pods(COMPONENT)}
