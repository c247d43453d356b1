"""The command line: verbs, help, errors and statuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from twolane.cli import main as cli
from twolane.core.errors import ConfigError, Overloaded


def _run_as(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """Lets every verb end with `error`, or with status 7."""

    def run(argv: list[str]) -> int:
        if error is not None:
            raise error
        return 7

    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(main=run))


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_a_module(verb: cli.Verb) -> None:
    """A verb in the help can be run."""
    spec = importlib.util.find_spec(verb.module)
    assert spec is not None
    assert spec.origin is not None
    assert f"\ndef {verb.function}(" in Path(spec.origin).read_text(encoding="utf-8")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """`twolane --help` is complete and succeeds."""
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb.name} " in shown for verb in cli.VERBS)


def test_no_verb_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A bare `twolane` is a wrong command line."""
    assert cli.main([]) == 2
    assert "usage: twolane" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["ruoter"], "`twolane router`"),
        (["bnech"], "`twolane bench serve` or `twolane bench policies`"),
        (["bench", "polices"], "`twolane bench policies`"),
        (["bench"], "`twolane bench serve` or `twolane bench policies`"),
        (["bench", "--url"], "`twolane bench serve` or `twolane bench policies`"),
    ],
)
def test_an_unknown_verb_names_the_nearest(
    line: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error costs one look."""
    assert cli.main(line) == 2
    assert hint in capsys.readouterr().err


def test_a_word_near_nothing_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    """A wild guess would mislead."""
    assert cli.main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_verb_of_two_words_gets_only_its_own_arguments() -> None:
    """`bench serve` is one verb."""
    found = cli.find_verb(["bench", "serve", "--url", "x"])
    assert found is not None
    assert (found[0].name, found[1]) == ("bench serve", ["--url", "x"])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 7, ""),
        (ConfigError("--port: must be a number"), 2, "twolane router: --port: must be a number\n"),
        (Overloaded("the queue is full"), 1, "twolane router: the queue is full\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_becomes_one_line_and_a_status(
    error: BaseException | None,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback for what is not a defect."""
    _run_as(monkeypatch, error)
    assert cli.main(["router"]) == status
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we did not foresee must be seen whole."""
    _run_as(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["router"])


def test_the_help_loads_no_heavy_library() -> None:
    """`twolane --help` is instant: what it imports is short."""
    code = (
        "import sys; from twolane.cli.main import main; main(['--help']); "
        "heavy = {'torch', 'grpc', 'pydantic', 'numpy', 'aiohttp', 'rich'}; "
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    """`twolane --version` and `twolane version` say the same."""
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == first
    assert first.startswith(f"twolane {version('twolane')} ")
