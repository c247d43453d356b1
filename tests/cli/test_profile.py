"""`twolane profile` on the demo model: a file that the simulator takes, with errors and machine facts."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from twolane.cli.profile import main
from twolane.core.errors import ConfigError
from twolane.sim.command import simulate_main
from twolane.sim.profile_file import load_profile


def test_the_demo_model_is_measured_and_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token more costs something, the fit is reported, and a simulation runs on the file."""
    out = tmp_path / "demo.json"
    flags = ["--rounds", "1", "--budget-s", "1", "--max-model-len", "1024", "--max-decode-rows", "16"]
    assert main([*flags, "--clock", "processor", "--name", "demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "fit of prefill" in printed
    assert "fit of mixed" in printed
    found = load_profile(str(out))
    assert found.measured
    assert found.name == "demo"
    assert found.profile.token_s > 0.0
    assert found.profile.kv_bytes_per_token == 4096
    assert found.profile.capacity_tokens == 65536
    assert found.profile.transfer_bytes_per_s > 1e6
    assert found.fit["prefill"]["shapes"] >= 20
    assert found.machine["cores"] >= 1
    lines: list[str] = []
    arguments = ["--profile", str(out), "--rate", "5", "--duration-s", "10", "--policy", "fcfs"]
    assert simulate_main(arguments, lines.append) == 0
    assert orjson.loads(lines[-1])["summary"]["all"]["failed"] == 0


def test_a_file_that_could_not_be_written_is_refused_before_the_measurement(tmp_path: Path) -> None:
    """Minutes of measuring must not be lost for want of a folder."""
    with pytest.raises(ConfigError, match="no such folder"):
        main(["--out", str(tmp_path / "none" / "a.json")])


def test_logs_of_workers_make_a_profile(tmp_path: Path) -> None:
    """Their steps count, none are timed; a folder without logs is an error that says what to do."""
    out = tmp_path / "logged.json"
    with pytest.raises(ConfigError, match="--step-log-dir"):
        main(["--steps", str(tmp_path), "--out", str(out)])
    lines = [f"{0.004 + 5e-5 * new:.7f},0,0,{new}:0" for new in range(10, 900, 10)]
    lines += [f"{0.002 + 1e-4 * rows:.7f},{rows},{100 * rows}," for rows in range(1, 40)]
    (tmp_path / "prefill-1.csv").write_text("\n".join(lines), encoding="ascii")
    assert main(["--steps", str(tmp_path), "--out", str(out)]) == 0
    found = load_profile(str(out))
    assert found.profile.prefill_s([(500, 0)]) == pytest.approx(0.029, rel=0.02)
    assert found.profile.mixed_s((), 10, 1000) == pytest.approx(0.003, rel=0.02)
    assert found.fit["decode"]["shapes"] == 39
