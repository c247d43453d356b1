"""Shows how far the start of the local processes is: a live table on a terminal, plain lines elsewhere.

`twolane up` tells it what each child does; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from twolane.cli.child import ChildSpec
from twolane.cli.loading import loading_stage
from twolane.core.clock import Clock


class Progress:
    """One line a child, with what it does and since when."""

    def __init__(self, console: Console, clock: Clock) -> None:
        """Writes to `console`; nothing is shown before the first `begin`."""
        self._console = console
        self._clock = clock
        self._begun_s: dict[str, float] = {}
        self._done_s: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._logs: dict[str, Path] = {}
        self._live = Live(console=console, get_renderable=self.table, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def begin(self, specs: Iterable[ChildSpec], doing: str) -> None:
        """These children have been started and now do what `doing` says."""
        for spec in specs:
            self._begun_s[spec.name] = self._clock()
            self._doing[spec.name] = doing
            self._logs[spec.name] = spec.log_path
            if not self._console.is_terminal:
                self._print(f"{spec.name}: {doing}")

    def ready(self, name: str) -> None:
        """This child can be contacted."""
        self._done_s[name] = self._clock() - self._begun_s[name]
        if not self._console.is_terminal:
            self._print(f"{name}: ready after {self._done_s[name]:.1f} s")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def table(self) -> Table:
        """What a terminal shows now."""
        table = Table.grid(padding=(0, 2))
        for name, begun_s in self._begun_s.items():
            if name in self._done_s:
                table.add_row(Text("✓", style="green"), name, f"ready after {self._done_s[name]:.1f} s")
            else:
                elapsed_s = self._clock() - begun_s
                stage = loading_stage(self._logs[name])
                doing = f"{self._doing[name]} … {elapsed_s:.0f} s{f' ({stage})' if stage else ''}"
                table.add_row(Spinner("dots"), name, doing)
        return table
