"""What the store holds is never older than what was written or told, in whatever order it comes."""

from __future__ import annotations

from typing import Any

import pytest

from twolane.operator.names import MODEL_DEPLOYMENT, MODEL_LABEL
from twolane.operator.resources.shape import Json
from twolane.operator.store import Store

PLACE = ("team", "demo")


def _child(version: int, name: str = "a", kind: str = "Deployment", uid: str = "u-1", **more: Any) -> Json:
    """A child of demo as the API server has it at a version."""
    metadata: Json = {"name": name, "namespace": "team", "uid": uid, "labels": {MODEL_LABEL: "demo"}}
    metadata |= {"resourceVersion": str(version), **more.pop("metadata", {})}
    return {"kind": kind, "metadata": metadata, "spec": {"replicas": version}, **more}


def _store() -> tuple[Store, list[tuple[str, str]]]:
    """A store, and whom it woke."""
    store, woken = Store(), list[tuple[str, str]]()
    for name in ("demo", "other"):
        store.put(_child(1, name, MODEL_DEPLOYMENT))
    store.on_change = woken.append
    return store, woken


def _replace(store: Store, namespace: str, bodies: list[Json], version: str) -> None:
    """A list of Deployments, an object a page."""
    taken = store.replace("Deployment", namespace, version)
    for body in bodies:
        taken.take([body])
    taken.finish()


def _replicas(store: Store, name: str = "a") -> int | None:
    found = store.get("Deployment", "team", name)
    return None if found is None else int(found["spec"]["replicas"])


def test_the_answer_of_a_write_is_not_undone_by_a_watch_that_lags() -> None:
    """The watch tells later of what was before; its own event of the write wakes nobody."""
    store, woken = _store()
    store.put(_child(5))
    store.answered(_child(9))
    assert _replicas(store) == 9
    woken.clear()
    store.put(_child(7))
    store.put(_child(9))
    assert (_replicas(store), woken) == (9, [])
    store.put(_child(12))
    assert (_replicas(store), woken) == (12, [PLACE])


def test_an_answer_that_comes_after_the_watch_has_told_of_the_end_brings_nothing_back() -> None:
    """A request may be answered late; the watch is past it."""
    store, _ = _store()
    store.put(_child(5))
    store.remove(_child(8))
    store.reach("Deployment", "", "8")
    store.answered(_child(7))
    assert _replicas(store) is None
    store.answered(_child(9, uid="u-2"))
    assert _replicas(store) == 9


def test_what_we_deleted_is_gone_though_the_watch_still_tells_of_its_last_days() -> None:
    """Until the watch says so itself; another object of the name counts at once."""
    store, _ = _store()
    store.put(_child(5))
    store.deleted("Deployment", "team", "a", "another")
    assert _replicas(store) == 5
    store.deleted("Deployment", "team", "a", "u-1")
    store.put(_child(6))
    assert _replicas(store) is None
    store.put(_child(8, uid="u-2"))
    store.remove(_child(7))
    assert _replicas(store) == 8


def test_a_list_takes_away_what_it_lacks_but_nothing_that_was_written_after_it() -> None:
    """As after a watch that expired: deletions were told to nobody."""
    store, woken = _store()
    _replace(store, "", [_child(3, "a"), _child(4, "b", uid="u-2")], "5")
    store.answered(_child(9, "c", uid="u-3"))
    woken.clear()
    _replace(store, "", [_child(3, "a")], "8")
    assert [_replicas(store, name) for name in "abc"] == [3, None, 9]
    assert woken == [PLACE]


def test_an_api_server_whose_memory_was_set_back_is_believed() -> None:
    """Versions begin anew after a restore; ours are worth nothing then."""
    store, _ = _store()
    _replace(store, "", [_child(90)], "100")
    _replace(store, "", [_child(3)], "40")
    assert _replicas(store) == 3


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    """An operator of two namespaces has a watch in each."""
    store, _ = _store()
    _replace(store, "team", [_child(3)], "5")
    _replace(store, "other", [], "8")
    assert _replicas(store) == 3
    store.answered(_child(4))
    assert _replicas(store) == 3
    store.answered(_child(6))
    assert _replicas(store) == 6


def test_a_list_of_one_model_leaves_all_others_alone() -> None:
    """It is read before what can't be undone."""
    store, _ = _store()
    other = _child(2, "b", uid="u-2", metadata={"labels": {MODEL_LABEL: "other"}})
    _replace(store, "", [_child(3), other], "5")
    store.replace_of_model("Deployment", PLACE, [], "9")
    assert [_replicas(store, name) for name in "ab"] == [None, 2]
    assert store.of_model("Deployment", "team", "other")


def test_a_child_that_is_relabelled_belongs_to_the_other_model() -> None:
    """Both are looked at."""
    store, woken = _store()
    store.put(_child(3))
    store.put(_child(4, metadata={"labels": {MODEL_LABEL: "other"}}))
    assert store.of_model("Deployment", "team", "demo") == []
    assert len(store.of_model("Deployment", "team", "other")) == 1
    assert set(woken) == {PLACE, ("team", "other")}


def test_what_nobody_reads_is_not_kept_and_wakes_nobody() -> None:
    """Managed fields, a budget's status, a pod's volumes; who owns a count is kept."""
    store, woken = _store()
    counted = {"manager": "keda", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    others = {"manager": "kubelet", "fieldsV1": {"f:status": {}}}
    store.put(_child(3, metadata={"managedFields": [counted, others]}))
    [entry] = store.of_model("Deployment", "team", "demo")[0]["metadata"]["managedFields"]
    assert entry["manager"] == "keda"
    budget = _child(4, "b", "PodDisruptionBudget")
    budget["spec"] = {}
    store.put(budget)
    pod = _child(5, "p", "Pod", spec={"volumes": [1]}, status={"phase": "Running", "hostIP": "10.0.0.1"})
    store.put(pod)
    assert "volumes" not in store.of_model("Pod", "team", "demo")[0]["spec"]
    woken.clear()
    moved = {**pod["metadata"], "resourceVersion": "9", "managedFields": [others]}
    store.put({**pod, "metadata": moved, "status": {"phase": "Running", "hostIP": "10.0.0.2"}})
    store.put({**budget, "metadata": {**budget["metadata"], "resourceVersion": "10"}, "status": {"now": 3}})
    assert woken == []
    # Known as the newest all the same.
    found = store.get("Pod", "team", "p")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "9"


@pytest.mark.parametrize("kind", ["Secret", "Lease", "Event"])
def test_answers_of_other_kinds_are_not_kept(kind: str) -> None:
    """Least of all Secrets."""
    store, woken = _store()
    store.answered(_child(3, kind=kind))
    assert woken == []


def test_what_is_left_of_a_model_that_is_gone_wakes_nobody() -> None:
    """Its end itself does."""
    store, woken = _store()
    store.put(_child(3))
    woken.clear()
    store.remove(_child(4, "demo", MODEL_DEPLOYMENT))
    assert woken == [PLACE]
    store.remove(_child(5))
    assert woken == [PLACE]


def test_a_reader_can_change_nothing() -> None:
    """Each gets an object of its own."""
    store, _ = _store()
    store.put(_child(3))
    store.of_model("Deployment", "team", "demo")[0]["spec"]["replicas"] = 99
    assert _replicas(store) == 3
