"""What `twolane up` prints: progress on either kind of output, addresses that work, no secrets."""

from __future__ import annotations

import io
import urllib.error
from email.message import Message
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench_serve.stub_server import Script, serving
from twolane.cli import up
from twolane.cli.child import ChildSpec
from twolane.cli.loading import loading_stage
from twolane.cli.progress import Progress
from twolane.cli.topology import UpConfig


def _console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=60, force_terminal=terminal), out


def _spec(name: str, log: Path = Path("no-log")) -> ChildSpec:
    return ChildSpec(name, (), log, Path("no-ports"))


@pytest.mark.parametrize(
    ("lines", "stage"),
    [
        ('{"stage": "map weights", "done_bytes": 0, "total_bytes": 0}', "map weights"),
        ('{"stage": "load weights", "done_bytes": 5, "total_bytes": 20}', "load weights 25%"),
        ('{"stage": "warm up"}\n{"msg": "listening"}', ""),
        ('{"stage": "warm up"}\n{"sta', ""),
        ("Traceback (most recent call last):", ""),
        ("[1, 2]", ""),
        ("", ""),
    ],
)
def test_the_stage_of_loading_is_that_of_the_last_line(lines: str, stage: str, tmp_path: Path) -> None:
    """A log that says something else, or nothing yet, gives none."""
    log = tmp_path / "log"
    log.write_text("x" * 10_000 + "\n" + lines)
    assert loading_stage(log) == stage
    assert loading_stage(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fd00::1", "[fd00::1]")],
)
def test_the_address_shown_can_be_reached_from_here(host: str, shown: str) -> None:
    """A wildcard is no address a client could use."""
    assert up.reachable(host) == shown


def test_the_key_is_used_but_never_printed() -> None:
    """The command line takes it from the environment of whoever pastes it."""
    config = UpConfig.from_args(["--api-key", "sesame-123", "--model", "some/folder"])
    console, out = _console()
    up.say_ready(config, "http://127.0.0.1:1", Path("logs"), console)
    assert "sesame" not in out.getvalue()
    assert "authorization: Bearer '$KEY" in out.getvalue()


def test_long_lines_are_not_wrapped() -> None:
    """What is printed is pasted: a line break inside a command would break it."""
    config = UpConfig.from_args(["--model", "some/folder"])
    console, out = _console()
    up.say_ready(config, "http://127.0.0.1:1", Path("logs"), console)
    assert '"content": "Tell me a short story."}]}\'\n' in out.getvalue()


def test_plain_output_gets_one_line_a_step() -> None:
    """Logs of a build server stay readable."""
    now_s = 10.0
    console, out = _console()
    with Progress(console, lambda: now_s) as progress:
        progress.begin([_spec("broker")], "starting")
        now_s = 12.5
        progress.ready("broker")
    assert out.getvalue() == "broker: starting\nbroker: ready after 2.5 s\n"


def test_a_terminal_gets_a_table_that_is_gone_at_the_end(tmp_path: Path) -> None:
    """It shows how far a worker is with loading; the last thing on the screen is the address."""
    log = tmp_path / "log"
    log.write_text('{"stage": "load weights", "done_bytes": 43, "total_bytes": 100}\n')
    console, out = _console(terminal=True)
    with Progress(console, lambda: 0.0) as progress:
        progress.begin([_spec("broker"), _spec("router")], "starting")
        progress.begin([_spec("mixed-0", log)], "loading tiny")
        progress.ready("broker")
        lines = console.render_lines(progress.table())
    text = ["".join(segment.text for segment in line).strip() for line in lines]
    assert text[0].startswith("✓  broker   ready after 0.0 s")
    assert text[1].endswith("router   starting … 0 s")
    assert text[2].endswith("mixed-0  loading tiny … 0 s (load weights 43%)")
    assert "\x1b[2K" in out.getvalue()


def test_a_router_that_is_not_ready_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own reason is worth more than "timed out"."""

    class Opener:
        def open(self, url: str, timeout: float) -> None:
            assert url.endswith("/readyz")
            assert timeout > 0
            raise urllib.error.HTTPError(url, 503, "no", Message(), io.BytesIO(b"no decode worker\n"))

    monkeypatch.setattr(up, "opener_for", lambda url: Opener())
    readiness = up.Readiness("http://127.0.0.1:1")
    assert readiness.look() is False
    assert readiness.explain().endswith("no decode worker")


def test_readiness_is_an_answer_or_the_reason_for_none() -> None:
    """A port on which nobody listens yet is no error."""
    with serving(Script()) as script:
        assert up.Readiness(script.url).look() is True
    readiness = up.Readiness("http://127.0.0.1:9")
    assert readiness.look() is False
    assert "refused" in readiness.explain()
