"""Starting, waiting and stopping, with scripted children and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from twolane.cli.child import ChildSpec
from twolane.cli.supervisor import ChildEnded, NotReadyInTime, StopAsked, Supervisor


@dataclass
class World:
    """Time that passes only in pauses, and what happened when."""

    now_s: float = 0.0
    signals: int = 0
    log: list[str] = field(default_factory=list)
    at: dict[float, Callable[[], None]] = field(default_factory=dict)

    def clock(self) -> float:
        """Seconds since the start."""
        return self.now_s

    def pause(self, seconds: float) -> None:
        """Lets time pass and does what is due."""
        self.now_s += seconds
        for due_s in [due_s for due_s in self.at if due_s <= self.now_s]:
            self.at.pop(due_s)()

    def signal(self) -> None:
        """Somebody presses Ctrl-C."""
        self.signals += 1


class FakeChild:
    """Reports its ports after a time, and ends some time after it was asked to (inf: never)."""

    def __init__(self, world: World, name: str, ready_s: float, stop_s: float) -> None:
        self.name = name
        self.exit_status: int | None = None
        self._world, self._ready_s, self._stop_s = world, ready_s, stop_s
        self._asked_s: float | None = None

    def status(self) -> int | None:
        """Ended once its time after the wish to stop has passed."""
        if self._asked_s is not None and self._world.now_s >= self._asked_s + self._stop_s:
            self.exit_status = 0
        return self.exit_status

    def ports(self) -> dict[str, int] | None:
        """Present from its time on."""
        return {"grpc": 1} if self._world.now_s >= self._ready_s else None

    def terminate(self) -> None:
        """Notes the wish."""
        self._world.log.append(f"stop {self.name}")
        self._asked_s = self._world.now_s

    def kill_group(self) -> None:
        """Notes the end."""
        self._world.log.append(f"end {self.name}")
        self.exit_status = self.exit_status if self.exit_status is not None else -9

    def last_lines(self, count: int = 20) -> list[str]:
        """A log of two lines."""
        return ["loading", "model.safetensors is missing"][-count:]


@dataclass
class Stage:
    """A supervisor over fake children."""

    world: World = field(default_factory=World)
    ready_s: dict[str, float] = field(default_factory=dict)
    stop_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(
            self.world.clock, self.world.pause, lambda: self.world.signals, self._spawn
        )

    def _spawn(self, spec: ChildSpec, launcher_fd: int) -> FakeChild:
        assert launcher_fd > 2
        return FakeChild(
            self.world, spec.name, self.ready_s.get(spec.name, 0.0), self.stop_s.get(spec.name, 0.0)
        )

    def start(self, *names: str) -> list[FakeChild]:
        """Starts one stage."""
        specs = [ChildSpec(name, (), Path("log"), Path("ports")) for name in names]
        children = self.supervisor.start(specs)
        assert all(isinstance(child, FakeChild) for child in children)
        return [child for child in children if isinstance(child, FakeChild)]


def test_waiting_ends_when_every_child_has_its_ports() -> None:
    """Each is announced once, in the order they become ready."""
    stage = Stage(ready_s={"a": 3.0, "b": 1.0})
    announced: list[str] = []
    found = stage.supervisor.wait_ports(stage.start("a", "b"), 10.0, announced.append)
    assert announced == ["b", "a"]
    assert found == {"a": {"grpc": 1}, "b": {"grpc": 1}}
    stage.supervisor.stop(1.0)


def test_a_child_that_never_gets_ready_ends_the_wait_at_the_deadline() -> None:
    """No wait is endless, and the message names who is late and the flag."""
    stage = Stage(ready_s={"slow": float("inf")})
    with pytest.raises(NotReadyInTime, match=r"slow did not start in time \(--start-timeout-s\)"):
        stage.supervisor.wait_ports(stage.start("slow"), 5.0, lambda name: None)
    assert stage.world.now_s == pytest.approx(5.0, abs=0.1)
    stage.supervisor.stop(1.0)


@pytest.mark.parametrize(("status", "words"), [(2, "ended with status 2"), (-9, "was ended by SIGKILL")])
def test_a_child_that_ends_early_is_shown_with_its_log(status: int, words: str) -> None:
    """The reason is on the screen, not after a timeout."""
    stage = Stage(ready_s={"worker": float("inf")})
    [worker] = stage.start("worker")
    stage.world.at[2.0] = lambda: setattr(worker, "exit_status", status)
    with pytest.raises(ChildEnded) as caught:
        stage.supervisor.wait_ports([worker], 100.0, lambda name: None)
    assert words in caught.value.message
    assert "  | model.safetensors is missing" in caught.value.message
    assert stage.world.now_s < 3.0
    stage.supervisor.stop(1.0)


def test_a_child_that_ends_while_served_stops_the_watch() -> None:
    """A dead worker is noticed at once."""
    stage = Stage()
    broker, *_ = stage.start("broker")
    stage.world.at[5.0] = lambda: setattr(broker, "exit_status", 1)
    with pytest.raises(ChildEnded, match="broker ended with status 1"):
        stage.supervisor.watch()
    stage.supervisor.stop(1.0)


def test_a_signal_ends_any_wait() -> None:
    """Ctrl-C while a model loads works like Ctrl-C later."""
    stage = Stage(ready_s={"slow": float("inf")})
    children = stage.start("slow")
    stage.world.at[1.0] = stage.world.signal
    with pytest.raises(StopAsked):
        stage.supervisor.wait_ports(children, 100.0, lambda name: None)
    stage.supervisor.stop(1.0)


def test_stages_stop_in_reverse_order_each_after_the_one_before() -> None:
    """The router drains while workers and broker still serve it."""
    stage = Stage(stop_s={"router": 2.0, "w0": 1.0})
    for names in (("broker",), ("w0", "w1"), ("router",)):
        stage.start(*names)
    assert stage.supervisor.stop(30.0) == []
    ends = [
        "stop router",
        "end router",
        "stop w0",
        "stop w1",
        "end w0",
        "end w1",
        "stop broker",
        "end broker",
    ]
    assert stage.world.log == ends


def test_a_stop_takes_no_longer_than_its_bound_and_names_who_was_killed() -> None:
    """A child that ignores SIGTERM gets its share of the time, no more."""
    stage = Stage(stop_s={"router": float("inf"), "worker": float("inf")})
    for name in ("broker", "worker", "router"):
        stage.start(name)
    assert stage.supervisor.stop(9.0) == ["router", "worker"]
    assert stage.world.now_s == pytest.approx(6.0, abs=0.2)


def test_a_second_signal_hurries_the_stop() -> None:
    """Who presses Ctrl-C twice doesn't wait."""
    stage = Stage(stop_s={"router": float("inf")})
    stage.start("router")
    stage.world.signals = 1
    stage.world.at[0.5] = stage.world.signal
    assert stage.supervisor.stop(60.0) == ["router"]
    assert stage.world.now_s < 1.0
