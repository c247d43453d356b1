"""Starts children, waits until they can be contacted, and stops them in order within a bound.

`twolane up` drives it. Waiting looks at the children again and again through `pause`, which a
signal cuts short, so tests run it with a virtual clock and scripted children.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from twolane.cli.child import Child, ChildSpec, describe_status
from twolane.core.clock import Clock
from twolane.core.errors import TwolaneError

LOOK_EVERY_S = 0.05


class Running(Protocol):
    """What the supervisor needs of a child (`Child`, or a scripted one in tests)."""

    @property
    def name(self) -> str:
        """What people see."""
        ...

    def status(self) -> int | None:
        """None while it runs, else its exit status."""
        ...

    def ports(self) -> dict[str, int] | None:
        """Its ports, or None until it can be contacted."""
        ...

    def terminate(self) -> None:
        """Asks it to stop."""
        ...

    def kill_group(self) -> None:
        """Ends what is left of it."""
        ...

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of its log."""
        ...


class StopAsked(Exception):
    """A signal asked the launcher to stop: no error."""


class ChildEnded(TwolaneError):
    """A child ended that should run; the message has its last log lines."""


class NotReadyInTime(TwolaneError):
    """Something was not ready at the deadline."""


class Supervisor:
    """Holds the children in order of their start; they are stopped in the reverse order.

    Children that were started by one `start` call form a stage: they are stopped together.
    """

    def __init__(
        self,
        clock: Clock,
        pause: Callable[[float], None],
        stop_asked: Callable[[], int],
        spawn: Callable[[ChildSpec, int], Running] = Child,
    ) -> None:
        """Args: the clock, a pause that a signal cuts short, the number of stop signals so far."""
        self._clock = clock
        self._pause = pause
        self._stop_asked = stop_asked
        self._spawn = spawn
        self._stages: list[list[Running]] = []
        # The children hold the read end; when this process dies, the kernel closes the write end.
        self._read_fd, self._write_fd = os.pipe()

    def start(self, specs: Sequence[ChildSpec]) -> list[Running]:
        """Starts a stage."""
        stage: list[Running] = []
        self._stages.append(stage)
        for spec in specs:
            stage.append(self._spawn(spec, self._read_fd))
        return stage

    def wait_for(self, condition: Callable[[], bool], deadline_s: float, explain: Callable[[], str]) -> None:
        """Waits until `condition` holds.

        Raises:
            StopAsked: a signal came.
            ChildEnded: a child ended meanwhile.
            NotReadyInTime: the deadline passed; `explain` says what did not happen.
        """
        while True:
            self.check()
            if condition():
                return
            if self._clock() >= deadline_s:
                raise NotReadyInTime(explain())
            self._pause(LOOK_EVERY_S)

    def wait_ports(
        self, children: Sequence[Running], deadline_s: float, on_ready: Callable[[str], None]
    ) -> dict[str, dict[str, int]]:
        """Waits until every child reports its ports; calls `on_ready(name)` for each as it does."""
        found: dict[str, dict[str, int]] = {}

        def look() -> bool:
            for child in children:
                ports = child.ports() if child.name not in found else None
                if ports is not None:
                    found[child.name] = ports
                    on_ready(child.name)
            return len(found) == len(children)

        def explain() -> str:
            missing = " and ".join(child.name for child in children if child.name not in found)
            return f"{missing} did not start in time (--start-timeout-s)"

        self.wait_for(look, deadline_s, explain)
        return found

    def watch(self) -> None:
        """Returns never: raises StopAsked on a signal and ChildEnded when a child ends."""
        while True:
            self.check()
            self._pause(1.0)

    def check(self) -> None:
        """Raises StopAsked or ChildEnded if it is time to."""
        if self._stop_asked():
            raise StopAsked
        for child in (child for stage in self._stages for child in stage):
            status = child.status()
            if status is not None:
                tail = "".join(f"\n  | {line}" for line in child.last_lines())
                raise ChildEnded(f"{child.name} {describe_status(status)}; its log ends:{tail}")

    def stop(self, timeout_s: float) -> list[str]:
        """Stops all stages, last started first, in at most `timeout_s`; a second signal hurries it.

        Returns:
            Names of the children that had to be killed.
        """
        end_s = self._clock() + timeout_s
        # The first signal asks for an orderly stop, each further one for a quick one.
        hurried = max(1, self._stop_asked())
        killed: list[str] = []
        for left, stage in zip(range(len(self._stages), 0, -1), reversed(self._stages), strict=True):
            # Each stage may use an equal share of what is left, so a slow one can't starve the next.
            stage_end_s = self._clock() + max(0.0, end_s - self._clock()) / left
            for child in stage:
                child.terminate()
            while any(child.status() is None for child in stage):
                if self._clock() >= stage_end_s or self._stop_asked() > hurried:
                    break
                self._pause(LOOK_EVERY_S)
            killed += [child.name for child in stage if child.status() is None]
            for child in stage:
                child.kill_group()
        os.close(self._read_fd)
        os.close(self._write_fd)
        return killed
