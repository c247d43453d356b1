"""Plays the runs of a comparison on several processors and keeps every result the moment it is there.

Seeds come one after the other over all workloads and loads: stopped early, a comparison has fewer seeds, but
all of its cells. Started again on the same folder it goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from twolane.core.errors import InvalidRequest
from twolane.sim.compare import Cell, Group, Numbers, Plan, play
from twolane.sim.workloads import fcfs_capacity

Say = Callable[[str], None]
FILE = "runs.jsonl"
# Packages whose code decides results.
DECISIVE = ("policies", "sim", "workload")
# Groups handed out beyond those that run: little is lost when time is up.
AHEAD = 1

# Set before processes are forked: workloads hold functions, which can't be sent.
_plan: Plan | None = None


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(slots=True)
class RunBook:
    """Results by group and variant, in a file of one line each if there is a folder.

    Attributes:
        path: of the file, or None.
        capacities: of the workloads under fcfs, in requests per second and prefill worker.
        runs: what is known.
    """

    path: Path | None
    capacities: dict[str, float] = field(default_factory=dict)
    runs: dict[Group, dict[str, Numbers]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, plan: Plan, *, any_code: bool = False) -> RunBook:
        """Reads what an earlier start has left.

        Raises:
            InvalidRequest: it was another comparison, made by other code, or no such file.
        """
        if folder is None:
            return cls(None)
        folder.mkdir(parents=True, exist_ok=True)
        book = cls(folder / FILE)
        head = _head(plan)
        if not (folder / FILE).exists():
            book._write(head)
            return book
        lines = (folder / FILE).read_bytes().splitlines()
        try:
            found = orjson.loads(lines[0]) if lines else {}
            _check(found, head, any_code)
            for line in lines[1:]:
                book._take(orjson.loads(line))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{FILE} of --out is damaged ({error}): repair it or name another folder"
            ) from error
        return book

    def add_capacity(self, workload: str, per_s: float) -> None:
        """Keeps a capacity."""
        self.capacities[workload] = per_s
        self._write({"workload": workload, "capacity_per_s": per_s})

    def add(self, group: Group, found: Sequence[tuple[str, Numbers]]) -> None:
        """Keeps the results of a group, with seven digits."""
        for variant, run in found:
            short = {name: float(f"{value:.7g}") for name, value in run.items()}
            self.runs.setdefault(group, {})[variant] = short
            self._write({**asdict(group), "variant": variant, "run": short})

    def cells(self, plan: Plan) -> list[Cell]:
        """All cells of the plan with at least one run, in its order."""
        found = []
        for workload in plan.workloads:
            for load in plan.loads:
                groups = [Group(workload.name, load, seed) for seed in plan.seeds]
                for variant in plan.variants:
                    known = {
                        group.seed: self.runs[group][variant.name]
                        for group in groups
                        if variant.name in self.runs.get(group, {})
                    }
                    if known:
                        found.append(Cell(workload.name, load, variant.name, workload.mixed, known))
        return found

    def _take(self, line: Mapping[str, Any]) -> None:
        if "capacity_per_s" in line:
            self.capacities[line["workload"]] = float(line["capacity_per_s"])
            return
        # JSON has no NaN.
        run = {name: math.nan if value is None else float(value) for name, value in line["run"].items()}
        group = Group(line["workload"], float(line["load"]), int(line["seed"]))
        self.runs.setdefault(group, {})[line["variant"]] = run

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(orjson.dumps(line) + b"\n")


def _head(plan: Plan) -> dict[str, Any]:
    digest = hashlib.sha256()
    for package in DECISIVE:
        root = importlib.resources.files("twolane") / package
        for name in sorted(each.name for each in root.iterdir() if each.name.endswith(".py")):
            digest.update((root / name).read_bytes())
    settings = plan.settings
    return {
        "requests": plan.requests,
        "profile": settings.profile,
        "prefill_workers": settings.prefill_workers,
        "code": digest.hexdigest()[:16],
    }


def _check(found: Mapping[str, Any], head: Mapping[str, Any], any_code: bool) -> None:
    for name, value in head.items():
        if name == "code":
            if found[name] != value and not any_code:
                raise InvalidRequest(
                    f"{FILE} of --out was made by other code; name another folder, or add to it all the same "
                    "with --any-code"
                )
        elif found[name] != value:
            raise InvalidRequest(
                f"{FILE} of --out has {name} {found[name]}, not {value}; name another folder"
            )


def run_plan(plan: Plan, book: RunBook, say: Say, jobs: int = 1, limit_s: float = math.inf) -> None:
    """Plays what the book lacks; after limit_s nothing new is begun, so that the book may keep gaps."""
    global _plan  # noqa: PLW0603
    end_s = time.monotonic() + limit_s
    with ExitStack() as stack:
        _plan = plan
        pool = None
        if jobs > 1:
            context = multiprocessing.get_context("fork")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context))
        unknown = [each.name for each in plan.workloads if each.name not in book.capacities]
        for (name,), per_s in _played(pool, _capacity, [(name,) for name in unknown], end_s, jobs):
            book.add_capacity(name, per_s)
        tasks = _tasks(plan, book)
        began_s = time.monotonic()
        for done, (task, found) in enumerate(_played(pool, _group, tasks, end_s, jobs), 1):
            book.add(task[0], found)
            left_s = (time.monotonic() - began_s) / done * (len(tasks) - done)
            say(f"{done:5d} of {len(tasks)}, {left_s / 60:4.0f} min left  {_line(task[0], found)}")


def _tasks(plan: Plan, book: RunBook) -> list[tuple[Group, float, tuple[str, ...]]]:
    """Groups with something to play: their rate, and the names of the variants."""
    tasks = []
    for seed in plan.seeds:
        for load in plan.loads:
            for workload in plan.workloads:
                group = Group(workload.name, load, seed)
                known = book.runs.get(group, {})
                left = tuple(each.name for each in plan.variants if each.name not in known)
                if left and workload.name in book.capacities:
                    rate_per_s = book.capacities[workload.name] * plan.settings.prefill_workers * load
                    tasks.append((group, rate_per_s, left))
    return tasks


def _played(
    pool: ProcessPoolExecutor | None,
    action: Callable[..., Any],
    tasks: Sequence[Any],
    end_s: float,
    jobs: int,
) -> Iterator[tuple[Any, Any]]:
    """Tasks with their results as these come; none is begun after end_s."""
    if pool is None:
        for task in tasks:
            if time.monotonic() >= end_s:
                return
            yield task, action(*task)
        return
    waiting = iter(tasks)
    running: dict[Future[Any], Any] = {}
    while True:
        while len(running) < jobs + AHEAD and time.monotonic() < end_s:
            task = next(waiting, None)
            if task is None:
                break
            running[pool.submit(action, *task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _capacity(name: str) -> float:
    assert _plan is not None
    workload = next(each for each in _plan.workloads if each.name == name)
    return fcfs_capacity(workload, _plan.settings, _plan.requests)


def _group(group: Group, rate_per_s: float, names: Sequence[str]) -> list[tuple[str, Numbers]]:
    assert _plan is not None
    variants = [each for each in _plan.variants if each.name in names]
    return list(play(_plan, group, rate_per_s, variants))


def _line(group: Group, found: Sequence[tuple[str, Numbers]]) -> str:
    misses = "  ".join(f"{name} {100 * run['slo_miss']:.1f} %" for name, run in found)
    return f"{group.workload} at {group.load:.2f}, seed {group.seed}; misses {misses}"
