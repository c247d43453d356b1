"""Flags and environment become one frozen object, or a message that names the setting."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError


class OvenConfig(ProcessConfig):
    """A process that doesn't exist."""

    process: ClassVar[str] = "oven"

    heat_c: int = Field(default=180, ge=0)
    """Heat in degrees."""
    dish: str
    """What is in it."""
    fan: bool = False
    """Whether the fan runs."""
    key: SecretStr | None = None
    """A secret."""


class GrillConfig(ProcessConfig):
    """Another one, called by two words."""

    process: ClassVar[str] = "grill"
    verb: ClassVar[str] = "grill top"

    dish: str = "fish"


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the environment over the default."""
    monkeypatch.setenv("TWOLANE_OVEN_HEAT_C", "200")
    monkeypatch.setenv("TWOLANE_OVEN_DISH", "pie")
    config = OvenConfig.from_args(["--heat-c", "220", "--fan"])
    assert (config.heat_c, config.dish, config.fan) == (220, "pie", True)


def test_every_process_has_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process's environment never reaches another."""
    monkeypatch.setenv("TWOLANE_OVEN_DISH", "pie")
    assert GrillConfig.from_args([]).dish == "fish"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--dish", "pie", "--heat-c", "hot"], "--heat-c (or TWOLANE_OVEN_HEAT_C)"),
        (["--dish", "pie", "--heat-c", "-1"], "--heat-c (or TWOLANE_OVEN_HEAT_C)"),
        ([], "--dish (or TWOLANE_OVEN_DISH)"),
    ],
    ids=["no number", "out of range", "missing"],
)
def test_a_bad_value_is_named_with_its_flag_and_its_variable(flags: list[str], named: str) -> None:
    """Whoever set it finds it."""
    with pytest.raises(ConfigError) as caught:
        OvenConfig.from_args(flags)
    assert named in caught.value.message
    assert "bad configuration of oven" in caught.value.message


def test_a_bad_value_is_not_repeated_in_the_message() -> None:
    """It may be a secret that was put in the wrong place."""
    with pytest.raises(ConfigError) as caught:
        OvenConfig.from_args(["--dish", "pie", "--heat-c", "sesame"])
    assert "sesame" not in caught.value.message


def test_an_unknown_variable_of_the_process_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error must not run unnoticed with a default."""
    monkeypatch.setenv("TWOLANE_OVEN_HEAT_F", "400")
    with pytest.raises(ConfigError, match=r"TWOLANE_OVEN_HEAT_F; known: .*TWOLANE_OVEN_HEAT_C"):
        OvenConfig.from_args(["--dish", "pie"])


def test_an_unknown_flag_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage names the command as it was typed."""
    with pytest.raises(SystemExit) as caught:
        GrillConfig.from_args(["--dsh", "pie"])
    assert caught.value.code == 2
    assert "usage: twolane grill top" in capsys.readouterr().err


def test_help_says_what_each_flag_means(capsys: pytest.CaptureFixture[str]) -> None:
    """The docstring under a field is its help."""
    with pytest.raises(SystemExit) as caught:
        OvenConfig.from_args(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--heat-c" in shown
    assert "Heat in degrees." in shown


def test_a_configuration_does_not_change_and_hides_its_secrets() -> None:
    """It can be logged and shared."""
    config = OvenConfig.from_args(["--dish", "pie", "--key", "sesame"])
    with pytest.raises(ValidationError):
        config.dish = "cake"
    assert "sesame" not in repr(config)
