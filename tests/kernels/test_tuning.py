"""Launch choices: measured once, remembered on disk, never measured while serving, damaged files forgiven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton

from twolane.kernels import tuning
from twolane.kernels.tuning import ChoiceCache, LaunchConfig, config

SLOW, FAST, BROKEN = config(4, BLOCK=1), config(8, 2, BLOCK=2), config(32, BLOCK=3)
_TIMES_MS = {1: 5.0, 2: 1.0}


class _Bench:
    """A timer that looks the time up by block size and counts what was measured."""

    def __init__(self) -> None:
        self.running: LaunchConfig | None = None
        self.measured: list[int] = []

    def trial(self, chosen: LaunchConfig) -> None:
        if chosen is BROKEN:
            raise triton.runtime.errors.OutOfResources(300000, 232448, "shared memory")
        self.running = chosen

    def timer(self, run: object) -> float:
        run()  # type: ignore[operator]
        assert self.running is not None
        self.measured.append(self.running.blocks["BLOCK"])
        return _TIMES_MS[self.running.blocks["BLOCK"]]


def test_fastest_candidate_is_remembered_on_disk(tmp_path: Path) -> None:
    """A second process reads the choice instead of measuring again; what doesn't fit the device is
    skipped."""
    path, bench = tmp_path / "deep" / "choices.json", _Bench()
    cache = ChoiceCache(path, bench.timer)
    assert cache.measure("op/1", [SLOW, BROKEN, FAST], bench.trial) == FAST
    assert bench.measured == [1, 2]
    assert ChoiceCache(path, bench.timer).get("op/1") == FAST


def test_two_processes_keep_each_others_choices(tmp_path: Path) -> None:
    """Both opened the file before either wrote."""
    path, bench = tmp_path / "choices.json", _Bench()
    first, second = ChoiceCache(path, bench.timer), ChoiceCache(path, bench.timer)
    first.measure("a", [SLOW], bench.trial)
    second.measure("b", [FAST], bench.trial)
    reread = ChoiceCache(path, bench.timer)
    assert (reread.get("a"), reread.get("b")) == (SLOW, FAST)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"op": {"warps": 3}}', '{"op": 5}'])
def test_damaged_file_counts_as_empty(tmp_path: Path, content: str) -> None:
    """A cache must never stop a start."""
    path = tmp_path / "choices.json"
    path.write_text(content)
    assert ChoiceCache(path).get("op") is None


def test_what_the_compiler_fails_at_is_skipped_but_a_broken_device_is_not(tmp_path: Path) -> None:
    """One candidate must not keep an engine from starting; after an error of the device nothing can go on."""

    def trial_of(error: Exception) -> tuning.Trial:
        def trial(chosen: LaunchConfig) -> None:
            if chosen is SLOW:
                raise error

        return trial

    cache = ChoiceCache(tmp_path / "c.json", lambda run: run() or 1.0)  # type: ignore[arg-type, return-value]
    for error in (RuntimeError("PassManager::run failed"), triton.runtime.errors.PTXASError("no")):
        assert cache.measure("op", [SLOW, FAST], trial_of(error)) == FAST
    with pytest.raises(RuntimeError, match="illegal"):
        cache.measure("op", [SLOW, FAST], trial_of(RuntimeError("CUDA error: an illegal memory access")))


def test_without_memory_to_measure_in_the_first_is_taken_and_not_remembered(tmp_path: Path) -> None:
    """A full pool leaves little; another start may have more."""

    def trial(chosen: LaunchConfig) -> None:
        raise torch.OutOfMemoryError(f"no room for {chosen}")

    cache = ChoiceCache(tmp_path / "c.json", lambda run: run() or 1.0)  # type: ignore[arg-type, return-value]
    assert cache.measure("op", [SLOW, FAST], trial) == SLOW
    assert cache.get("op") is None


def test_a_folder_that_cannot_be_written_does_not_stop_a_start(tmp_path: Path) -> None:
    """As in a container with a read-only root; this process still remembers."""
    (tmp_path / "file").write_text("")
    bench = _Bench()
    cache = ChoiceCache(tmp_path / "file" / "c.json", bench.timer)
    assert cache.measure("op", [SLOW, FAST], bench.trial) == FAST
    assert cache.get("op") == FAST


@pytest.mark.parametrize(("measured", "expected"), [((), True), (("other",), False), (("op", "other"), True)])
def test_only_named_operations_are_measured(
    measured: tuple[str, ...], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No names: all of them. An engine's start can't afford to compile every candidate of every kernel."""
    cache = ChoiceCache(tmp_path / "c.json", lambda _run: 1.0)
    monkeypatch.setitem(tuning._caches, 0, cache)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with tuning.measuring(*measured):
        tuning.choose("op", (1,), [SLOW, FAST], lambda: lambda _chosen: None, torch.device("cuda", 0))
    assert (cache.get("op/1") is not None) == expected


def test_nothing_fitting_is_an_error_that_says_why(tmp_path: Path) -> None:
    """The message carries each candidate's reason."""
    bench = _Bench()
    with pytest.raises(RuntimeError, match="shared memory"):
        ChoiceCache(tmp_path / "c.json", bench.timer).measure("op", [BROKEN], bench.trial)


def test_cpu_tensors_take_the_first_candidate_unmeasured() -> None:
    """Nor is a trial even prepared."""

    def make_trial() -> tuning.Trial:
        raise AssertionError("measured")

    with tuning.measuring():
        chosen = tuning.choose("op", (1,), [SLOW, FAST], make_trial, torch.device("cpu"))
    assert chosen is SLOW


def test_cache_file_is_per_device_triton_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited kernel or a new Triton starts afresh; the folder can be set."""
    monkeypatch.setenv(tuning.CACHE_FOLDER_VARIABLE, str(tmp_path))
    path = tuning.cache_path("NVIDIA H200")
    assert path.parent == tmp_path
    assert path.name.startswith(f"NVIDIA-H200-triton{triton.__version__}-")
    assert tuning.cache_path("NVIDIA A100") != path
