"""The event loop that workers run on has sockets of its own making: streams must work there as well."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import uvloop

from tests.transfer.test_sender import DEADLINE_S, SOURCE, TARGET, TRANSPORTS, Owner, Writer
from twolane.v1 import transfer_pb2 as pb


async def transfer(transport: pb.Transport.ValueType) -> None:
    """One prompt from end to end."""
    owner, writer = Owner(), Writer()
    await owner.server.start()
    owner.stream_port = await owner.streams.start("127.0.0.1", 0)
    writer.sender.open("r")
    writer.sender.offer(owner.offer(transport))
    writer.compute()
    async with asyncio.timeout(DEADLINE_S):
        assert await writer.ended is None
        assert await owner.handover == [42]
    np.testing.assert_array_equal(owner.store.pages[list(TARGET)], writer.store.pages[SOURCE])
    await writer.sender.close()
    await owner.streams.stop()
    await owner.server.stop(0)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pages_land_on_uvloop(transport: pb.Transport.ValueType) -> None:
    """By every transport."""
    uvloop.run(transfer(transport))
