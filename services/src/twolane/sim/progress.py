"""How far a simulation is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Lines of a whole run where there is no terminal.
LINES = 20


@contextlib.contextmanager
def shown_progress(total: int, say: Callable[[str], None]) -> Iterator[Callable[[float, int], None]]:
    """Shows progress while the block runs.

    Args:
        total: requests of the run.
        say: takes lines where standard error is no terminal.

    Yields:
        A function to call with virtual seconds and the requests left.
    """
    if not sys.stderr.isatty():
        yield _lines(total, say)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 s simulated", total=total)

        def show(now_s: float, left: int) -> None:
            bar.update(task, completed=total - left, description=f"{now_s:,.0f} s simulated")

        yield show


def _lines(total: int, say: Callable[[str], None]) -> Callable[[float, int], None]:
    due = 0

    def show(now_s: float, left: int) -> None:
        nonlocal due
        if total - left >= due:
            due += max(1, total // LINES)
            say(f"{now_s:,.0f} s simulated, {total - left:,} of {total:,} requests done")

    return show
