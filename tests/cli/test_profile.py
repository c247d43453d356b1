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
