"""The contract of BrokerState, checked on the memory adapter and on a real Redis alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from twolane.core.errors import LeaseInvalid
from twolane.state.records import Heartbeat, LeaseRequest
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import TRANSPORT_SHARED_MEMORY
from twolane.v1.types_pb2 import LANE_LONG, ROLE_DECODE
from twolane.v1.worker_pb2 import Load

LONG_S = 600.0
Make = Callable[..., WorkerInfo]


def name(number: int) -> bytes:
    """A 16-byte page name."""
    return number.to_bytes(16, "big")


def beat(worker_id: str, incarnation: int, status: WorkerInfo | None = None, **changes: Any) -> Heartbeat:
    return Heartbeat(worker_id, incarnation, status or WorkerInfo(), **changes)


def lease_request(owner: int, writer: int, **changed: Any) -> LeaseRequest:
    fields: dict[str, Any] = {
        "request_id": "r",
        "owner_id": "d",
        "owner_incarnation": owner,
        "writer_id": "p",
    }
    fields |= {"writer_incarnation": writer, "transport": TRANSPORT_SHARED_MEMORY}
    return LeaseRequest(**(fields | changed))


async def pair(store: Any, make_worker: Make) -> tuple[int, int]:
    """Registers owner "d" and writer "p" for long; returns their incarnations."""
    owner = await store.state.register(make_worker("d"), [], LONG_S)
    writer = await store.state.register(make_worker("p"), [], LONG_S)
    return owner.incarnation, writer.incarnation


async def test_a_registered_worker_is_listed_as_it_came(store: Any, make_worker: Make) -> None:
    """Every field survives; incarnation is the given one; load and draining start empty."""
    worker = make_worker("w", lane=LANE_LONG, draining=True, incarnation=77)
    worker.load.running = 9
    given = await store.state.register(worker, [name(1)], LONG_S)
    [listed] = await store.state.workers()
    expected = make_worker("w", lane=LANE_LONG, incarnation=given.incarnation)
    expected.load.SetInParent()
    assert given.incarnation > 0
    assert listed == expected
    assert await store.state.find_workers(["w", "other"]) == {"w": expected}
    assert await store.state.find_workers([]) == {}


async def test_one_holder_leads_until_its_time_is_over(store: Any) -> None:
    """It may prolong its lead; another gets it only afterwards."""
    assert await store.state.lead("a", LONG_S)
    assert not await store.state.lead("b", LONG_S)
    assert await store.state.lead("a", store.short_ttl_s)

    async def taken() -> bool:
        return bool(await store.state.lead("b", LONG_S))

    await store.until(taken)
    assert not await store.state.lead("a", LONG_S)


async def test_incarnations_grow_with_every_registration(store: Any, make_worker: Make) -> None:
    """Also over deregistration, so that a number never names two lives of a worker."""
    numbers = []
    for _ in range(3):
        numbers.append((await store.state.register(make_worker("w"), [], LONG_S)).incarnation)
        await store.state.deregister("w", numbers[-1])
        numbers.append((await store.state.register(make_worker("w"), [], LONG_S)).incarnation)
    assert numbers == sorted(set(numbers))


async def test_a_worker_with_another_fingerprint_is_refused(store: Any, make_worker: Make) -> None:
    """The conflict names the living worker; nothing is registered; another model does not matter."""
    await store.state.register(make_worker("a", page_tokens=16), [], LONG_S)
    refused = await store.state.register(make_worker("b", page_tokens=32), [name(1)], LONG_S)
    assert refused.incarnation == 0
    assert refused.conflict is not None
    assert (refused.conflict.worker_id, refused.conflict.fingerprint.page_tokens) == ("a", 16)
    assert [worker.worker_id for worker in await store.state.workers()] == ["a"]
    assert (await store.state.register(make_worker("b", model="n", page_tokens=32), [], LONG_S)).incarnation


async def test_a_worker_may_change_its_own_fingerprint(store: Any, make_worker: Make) -> None:
    """The only worker of a model comes back with another build of it."""
    await store.state.register(make_worker("a", page_tokens=16), [], LONG_S)
    assert (await store.state.register(make_worker("a", page_tokens=32), [], LONG_S)).incarnation


async def test_a_silent_worker_no_longer_blocks_another_fingerprint(store: Any, make_worker: Make) -> None:
    """Only living workers count."""
    await store.state.register(make_worker("a", page_tokens=16), [], store.short_ttl_s)

    async def accepted() -> bool:
        return bool((await store.state.register(make_worker("b", page_tokens=32), [], LONG_S)).incarnation)

    await store.until(accepted)


async def test_a_heartbeat_replaces_status_and_applies_prefix_changes(store: Any, make_worker: Make) -> None:
    """Role, lane, load and draining are replaced, fixed fields stay."""
    given = await store.state.register(make_worker("w"), [name(1), name(2)], LONG_S)
    status = WorkerInfo(role=ROLE_DECODE, lane=LANE_LONG, draining=True, load=Load(running=3), address="x")
    changes = {"added": (name(3), name(1)), "removed": (name(2),)}
    assert await store.state.heartbeat(beat("w", given.incarnation, status, **changes), LONG_S)
    [listed] = await store.state.workers()
    assert (listed.role, listed.lane, listed.draining, listed.load.running) == (
        ROLE_DECODE,
        LANE_LONG,
        True,
        3,
    )
    assert listed.address == "w:9100"
    assert await store.state.prefixes("w") == {name(1), name(3)}
    assert await store.state.heartbeat(beat("w", given.incarnation), LONG_S)
    [listed] = await store.state.workers()
    assert (listed.role, listed.lane, listed.draining, listed.load) == (0, 0, False, Load())


async def test_heartbeats_of_unknown_workers_and_old_incarnations_are_refused(
    store: Any, make_worker: Make
) -> None:
    """They change nothing."""
    old = (await store.state.register(make_worker("w"), [], LONG_S)).incarnation
    await store.state.register(make_worker("w"), [], LONG_S)
    assert not await store.state.heartbeat(beat("w", old, added=(name(1),)), LONG_S)
    assert not await store.state.heartbeat(beat("nobody", 1), LONG_S)
    assert not await store.state.heartbeat(beat("nobody", 0), LONG_S)
    assert await store.state.prefixes("w") == frozenset()


async def test_a_silent_worker_is_gone_and_reported_by_one_sweep(store: Any, make_worker: Make) -> None:
    """Its prefix names go with it; its heartbeat comes too late; the other lives on."""
    silent = await store.state.register(make_worker("silent"), [name(1)], store.short_ttl_s)
    await store.state.register(make_worker("alive"), [name(1)], LONG_S)
    gone: list[str] = []

    async def swept() -> bool:
        gone.extend((await store.state.sweep()).gone_workers)
        return bool(gone)

    await store.until(swept)
    assert gone == ["silent"]
    assert (await store.state.sweep()).gone_workers == ()
    assert [worker.worker_id for worker in await store.state.workers()] == ["alive"]
    assert not await store.state.heartbeat(beat("silent", silent.incarnation), LONG_S)
    assert await store.state.prefixes("silent") == frozenset()
    assert await store.state.prefix_entries() == 1


async def test_heartbeats_keep_a_worker_alive(store: Any, make_worker: Make) -> None:
    """The last heartbeat's time to live counts, not the registration's."""
    kept = await store.state.register(make_worker("kept"), [], store.short_ttl_s)
    if not await store.state.heartbeat(beat("kept", kept.incarnation), LONG_S):
        pytest.fail("the heartbeat came too late for the short time to live")
    await store.state.register(make_worker("witness"), [], store.short_ttl_s)

    async def witness_gone() -> bool:
        return "witness" in (await store.state.sweep()).gone_workers

    await store.until(witness_gone)
    assert [worker.worker_id for worker in await store.state.workers()] == ["kept"]


async def test_a_late_heartbeat_counts_until_a_sweep(store: Any, make_worker: Make) -> None:
    """A store that was held up loses nobody who still speaks; followers see the worker all along."""
    given = await store.state.register(make_worker("late"), [name(1)], store.short_ttl_s)

    async def no_longer_lives() -> bool:
        return bool(await store.state.workers() == [])

    await store.until(no_longer_lives)
    snapshot = await store.state.snapshot()
    assert snapshot.prefixes == {"late": {name(1)}}
    assert await store.state.heartbeat(beat("late", given.incarnation, added=(name(2),)), LONG_S)
    assert (await store.state.sweep()).gone_workers == ()
    assert [worker.worker_id for worker in await store.state.workers()] == ["late"]
    assert await store.state.prefixes("late") == {name(1), name(2)}


async def test_an_old_incarnation_cannot_deregister_its_successor(store: Any, make_worker: Make) -> None:
    """A process that shuts down late leaves the new one alone."""
    old = (await store.state.register(make_worker("w"), [], LONG_S)).incarnation
    new = (await store.state.register(make_worker("w"), [], LONG_S)).incarnation
    assert not await store.state.deregister("w", old)
    assert not await store.state.deregister("w", 0)
    assert len(await store.state.workers()) == 1
    assert await store.state.deregister("w", new)
    assert await store.state.workers() == []


async def test_registering_again_replaces_the_prefix_cache(store: Any, make_worker: Make) -> None:
    """Nothing of the old process's cache is left; many names come in one call."""
    await store.state.register(make_worker("w"), [name(1), name(2)], LONG_S)
    many = [name(number) for number in range(2, 5002)]
    await store.state.register(make_worker("w"), many, LONG_S)
    assert await store.state.prefixes("w") == frozenset(many)
    assert await store.state.prefix_entries() == 5000


async def test_a_lease_carries_the_request_and_a_growing_fence(store: Any, make_worker: Make) -> None:
    """Ids are distinct, fences grow, all fields are those asked for."""
    owner, writer = await pair(store, make_worker)
    leases = [await store.state.grant_lease(lease_request(owner, writer), 30.0) for _ in range(5)]
    fences = [lease.fence for lease in leases]
    assert fences == sorted(set(fences))
    assert fences[0] > 0
    assert len({lease.lease_id for lease in leases}) == 5
    first = leases[0]
    assert (first.request_id, first.owner_id, first.writer_id) == ("r", "d", "p")
    assert (first.owner_incarnation, first.writer_incarnation) == (owner, writer)
    assert (first.ttl_ms, first.transport) == (30_000, TRANSPORT_SHARED_MEMORY)
    assert await store.state.leases() == leases


async def test_concurrent_grants_get_distinct_fences(store: Any, make_worker: Make) -> None:
    """Fences order leases even when they are granted at once."""
    owner, writer = await pair(store, make_worker)
    grants = [store.state.grant_lease(lease_request(owner, writer), LONG_S) for _ in range(50)]
    assert len({lease.fence for lease in await asyncio.gather(*grants)}) == 50


@pytest.mark.parametrize("side", ["owner", "writer"])
async def test_a_lease_needs_both_incarnations(store: Any, make_worker: Make, side: str) -> None:
    """A replaced, unknown or never numbered worker on either side is refused by name."""
    owner, writer = await pair(store, make_worker)
    other = lease_request(owner, writer, **{f"{side}_incarnation": 1 + owner + writer})
    with pytest.raises(LeaseInvalid, match=f"the {side} .* was replaced"):
        await store.state.grant_lease(other, LONG_S)
    nobody = lease_request(owner, writer, **{f"{side}_id": "nobody"})
    with pytest.raises(LeaseInvalid, match=f"the {side} 'nobody' is not registered"):
        await store.state.grant_lease(nobody, LONG_S)
    unnumbered = lease_request(owner, writer, **{f"{side}_id": "nobody", f"{side}_incarnation": 0})
    with pytest.raises(LeaseInvalid):
        await store.state.grant_lease(unnumbered, LONG_S)
    assert await store.state.leases() == []


@pytest.mark.parametrize("replaced_id", ["d", "p"])
async def test_replacing_a_worker_drops_its_leases(store: Any, make_worker: Make, replaced_id: str) -> None:
    """As owner or writer; the owner learns it when it renews."""
    owner, writer = await pair(store, make_worker)
    lease = await store.state.grant_lease(lease_request(owner, writer), LONG_S)
    await store.state.register(make_worker(replaced_id), [], LONG_S)
    assert await store.state.leases() == []
    assert await store.state.renew_leases("d", owner, [lease.lease_id], LONG_S) == [lease.lease_id]


async def test_an_expired_lease_is_gone_and_a_renewed_one_is_not(store: Any, make_worker: Make) -> None:
    """A renewal can't bring back what has expired; a sweep reports each expiry once."""
    owner, writer = await pair(store, make_worker)
    kept = await store.state.grant_lease(lease_request(owner, writer), LONG_S)
    lost = await store.state.grant_lease(lease_request(owner, writer), store.short_ttl_s)
    assert await store.state.renew_leases("d", owner, [kept.lease_id], LONG_S) == []

    async def lost_is_gone() -> bool:
        return bool(await store.state.leases() == [kept])

    await store.until(lost_is_gone)
    both = [kept.lease_id, lost.lease_id]
    assert await store.state.renew_leases("d", owner, both, LONG_S) == [lost.lease_id]
    swept = await store.state.sweep()
    assert (swept.expired_leases, swept.leases_out) == ((lost.lease_id,), 1)
    assert (await store.state.sweep()).expired_leases == ()


async def test_only_the_owner_renews_and_releases(store: Any, make_worker: Make) -> None:
    """Strangers and old incarnations change nothing; unknown ids are ignored; release is idempotent."""
    owner, writer = await pair(store, make_worker)
    lease = await store.state.grant_lease(lease_request(owner, writer), LONG_S)
    ids = [lease.lease_id, "unknown"]
    assert await store.state.renew_leases("p", writer, ids, LONG_S) == ids
    assert await store.state.release_leases("p", writer, ids) == 0
    assert await store.state.release_leases("d", owner + writer, ids) == 0
    assert await store.state.leases() == [lease]
    assert await store.state.release_leases("d", owner, [*ids, lease.lease_id]) == 1
    assert await store.state.release_leases("d", owner, ids) == 0
    assert await store.state.leases() == []
