"""Decode of a fleet between two moments: all workers equally full, steps priced by the profile.

Rows advance in virtual time, one token each per step, so an answer ends at a virtual time that is known
when it joins; ends are counted in buckets of one token. scaling.py calls it.
"""

from __future__ import annotations

import numpy as np

from twolane.sim.profile import EngineProfile
from twolane.sim.scaling_arrivals import Arrivals, Floats
from twolane.sim.scaling_prefill import Indices

TICK_S = 1.0
# Share of the pages up to which admission lets answers in; the rest is for their growth.
ADMIT_SHARE = 0.88


class DecodeFlow:
    """The decode pool.

    Attributes:
        rows: answers that decode.
        held_tokens: tokens that they hold.
        waiting: answers that wait for pages.
        ended, output_tokens: answers that ended so far, and their tokens.
        late: answers so far that waited for pages longer than their pace allows.
    """

    def __init__(self, arrivals: Arrivals, profile: EngineProfile, max_rows: int, tpot_s: float) -> None:
        self._arrivals, self._profile, self._max_rows, self._tpot_s = arrivals, profile, max_rows, tpot_s
        self.late = 0
        self._sent_s: Floats = np.full(len(arrivals), np.nan)
        self.rows = 0.0
        self.held_tokens = 0.0
        self.ended = 0.0
        self.output_tokens = 0.0
        self.waiting: Indices = np.empty(0, np.int64)
        self._virtual = 0.0
        self._end_at: Floats = np.full(len(arrivals), np.nan)
        size = 1 << 16
        self._rows_end, self._tokens_end, self._output_end, self._end_sum = (np.zeros(size) for _ in range(4))
        self._clock_s: list[float] = [0.0]
        self._clock: list[float] = [0.0]
        self._joins: dict[int, list[Indices]] = {}
        self._longest = int(arrivals.output.max()) + 2 if len(arrivals) else 2

    def join(self, index: Indices, first_s: Floats) -> None:
        """Answers whose prompts are computed at `first_s`; their pages are sent then."""
        profile, arrivals = self._profile, self._arrivals
        more = arrivals.output[index] > 1.5
        index, first_s = index[more], first_s[more]
        if not len(index):
            return
        sent_s = (
            first_s
            + profile.transfer_latency_s
            + arrivals.prompt[index] * (profile.kv_bytes_per_token / profile.transfer_bytes_per_s)
        )
        self._sent_s[index] = sent_s
        ticks = np.floor(sent_s / TICK_S).astype(np.int64)
        order = np.argsort(ticks, kind="stable")
        values, starts = np.unique(ticks[order], return_index=True)
        for tick, group in zip(values.tolist(), np.split(index[order], starts[1:]), strict=True):
            self._joins.setdefault(int(tick), []).append(group)

    def tick(self, number: int, workers: float) -> None:
        """One tick of time with so many workers: what waits joins before it, what arrives in it after."""
        now_s = number * TICK_S
        if len(self.waiting) and workers > 0.0:
            self._admit(workers, now_s)
        if self.rows > 0.0 and workers > 0.0:
            self._advance(workers)
        due = [group for tick in sorted(self._joins) if tick <= number for group in self._joins.pop(tick)]
        if due:
            group = due[0] if len(due) == 1 else np.concatenate(due)
            self._arrive(group, now_s + TICK_S, workers)
        self._clock_s.append(now_s + TICK_S)
        self._clock.append(self._virtual)

    def last_s(self) -> Floats:
        """When each answer's last token came; NaN for those still running."""
        clock = np.array(self._clock)
        found: Floats = np.interp(self._end_at, clock, np.array(self._clock_s))
        found[~(self._end_at <= self._virtual)] = np.nan
        return found

    def drain_s(self, workers: float) -> float:
        """Seconds until one worker of so many would have no row left that it has now."""
        if self.rows <= 0.0 or workers <= 0.0:
            return 1.0
        here = int(self._virtual)
        left = np.cumsum(self._rows_end[here : here + self._longest][::-1])
        beyond = int(np.searchsorted(left, workers))
        steps = max(0, len(left) - beyond)
        return float(steps * self._step_s(workers))

    def _step_s(self, workers: float, rows: float | None = None) -> float:
        rows = (self.rows if rows is None else rows) / max(1e-9, workers)
        return self._profile.decode_constant_s(int(rows)) + (
            self._profile.decode_read_s * self.held_tokens / max(1e-9, workers)
        )

    def _arrive(self, group: Indices, now_s: float, workers: float) -> None:
        """Answers whose pages came within the last tick: each joined at that moment, if there was room."""
        if not len(self.waiting):
            group = self._passed(group, now_s, workers)
            if not len(group):
                return
            room, free = self._room(workers)
            if len(group) <= free and float(self._arrivals.prompt[group].sum()) < room:
                self._begin(group, now_s, workers)
                return
        self.waiting = np.concatenate((self.waiting, group))

    def _passed(self, group: Indices, now_s: float, workers: float) -> Indices:
        """Counts answers off that came and ended since the last tick; returns the others."""
        if workers <= 0.0:
            return group
        output = self._arrivals.output[group]
        done = (now_s - self._sent_s[group]) / self._step_s(workers)
        short = done >= output - 1.0
        self._pass(group[short], (output - 1.0 - done)[short])
        return group[~short]

    def _room(self, workers: float) -> tuple[float, float]:
        """Tokens and rows that may still be admitted."""
        room = ADMIT_SHARE * self._profile.capacity_tokens * workers - self.held_tokens
        return room, self._max_rows * workers - self.rows

    def _admit(self, workers: float, now_s: float) -> None:
        """Lets waiting answers in, for the tick that begins now.

        As many as there is room for begin at once, a wave; the next wave takes their rows as they end.
        Answers much shorter than a tick pass in many waves.
        """
        waiting, output = self.waiting, self._arrivals.output
        room, free = self._room(workers)
        free += self._freed(workers)
        wave = min(int(np.searchsorted(np.cumsum(self._arrivals.prompt[waiting] + 1.0), room)), int(free))
        if wave <= 0:
            return
        step_s = self._step_s(workers, self.rows + wave)
        steps = output[waiting] - 1.0
        done = np.concatenate(([0.0], np.cumsum(steps)))
        begin_s = done[np.arange(len(waiting)) // wave * wave] / wave * step_s
        ends = begin_s + steps * step_s <= TICK_S
        admitted = (begin_s < TICK_S) & (np.cumsum(~ends) <= wave)
        count = len(waiting) if admitted.all() else int(np.argmin(admitted))
        waited_s = now_s + begin_s - self._sent_s[waiting]
        late = (waited_s > TICK_S) & (waited_s > steps * (self._tpot_s - step_s))
        self.late += int(late[:count].sum())
        passing, staying = waiting[:count][ends[:count]], waiting[:count][~ends[:count]]
        self._pass(passing, begin_s[:count][ends[:count]] / step_s + output[passing] - 1.0)
        if len(staying):
            self._begin(staying, now_s, workers)
        self.waiting = waiting[count:]

    def _freed(self, workers: float) -> float:
        """Rows that end within the tick that begins now, each for the part of it that is left then."""
        here, steps = int(self._virtual), TICK_S / self._step_s(workers)
        ending = self._rows_end[here : int(self._virtual + steps)]
        left = 1.0 - (np.arange(len(ending)) + 0.5) / steps
        return float((ending * np.maximum(0.0, left)).sum())

    def _pass(self, group: Indices, steps: Floats) -> None:
        """Answers that end after so many steps from now, within a tick."""
        self._end_at[group] = self._virtual + steps
        self.ended += float(len(group))
        self.output_tokens += float(self._arrivals.output[group].sum())

    def _begin(self, group: Indices, now_s: float, workers: float) -> None:
        prompt, output = self._arrivals.prompt[group], self._arrivals.output[group]
        # Pages that arrived within the last tick let their row join at that moment: it is ahead of the
        # others by the steps since then. One that waited longer begins now.
        waited_s = now_s - self._sent_s[group]
        done = np.where(waited_s < TICK_S, waited_s / self._step_s(workers), 0.0)
        done = np.minimum(done, output - 1.0)
        end = self._virtual - done + output - 1.0
        self._end_at[group] = end
        bucket = end.astype(np.int64)
        while len(self._rows_end) <= bucket.max() + 1:
            self._rows_end, self._tokens_end, self._output_end, self._end_sum = (
                np.concatenate((one, np.zeros_like(one)))
                for one in (self._rows_end, self._tokens_end, self._output_end, self._end_sum)
            )
        held = prompt + 1.0 + done
        np.add.at(self._rows_end, bucket, 1.0)
        np.add.at(self._tokens_end, bucket, held + end - self._virtual)
        np.add.at(self._output_end, bucket, output)
        np.add.at(self._end_sum, bucket, end)
        self.rows += len(end)
        self.held_tokens += float(held.sum())

    def _advance(self, workers: float) -> None:
        start, before = self._virtual, int(self._virtual)
        steps = TICK_S / self._step_s(workers)
        self._virtual += steps
        after = int(self._virtual)
        gone = float(self._rows_end[before:after].sum())
        self.rows -= gone
        # Those that ended grew up to their end: anything rougher adds up over hours.
        grown = float(self._end_sum[before:after].sum()) - gone * start
        self.held_tokens += steps * self.rows + grown
        self.held_tokens -= float(self._tokens_end[before:after].sum())
        self.ended += gone
        self.output_tokens += float(self._output_end[before:after].sum())
        if self.rows < 0.5:
            self.rows = self.held_tokens = 0.0
        self.held_tokens = max(self.held_tokens, 0.0)
