"""The chat against a scripted server: streaming, history, commands, errors, Ctrl-C."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator

import pytest

from tests.bench_serve.stub_server import Script, serving
from twolane.cli import chat
from twolane.cli.conversation import Conversation, Endpoint
from twolane.cli.http_opener import is_local
from twolane.cli.main import main


@pytest.fixture
def script() -> Iterator[Script]:
    """A server that answers "Hello!"."""
    with serving(Script()) as script:
        yield script


def _chat(monkeypatch: pytest.MonkeyPatch, script: Script, said: str, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return main(["chat", "--url", script.url, *flags])


def test_a_question_from_a_pipe_is_answered(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain answers, nothing else, and success at the end of the input."""
    assert _chat(monkeypatch, script, "Hi\n") == 0
    assert capsys.readouterr().out == "Hello!\n"
    assert script.asked[0]["model"] == "stub"
    assert script.asked[0]["stream"] is True


def test_the_next_question_carries_what_was_said(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Question and answer stand before it."""
    _chat(monkeypatch, script, "one\n\ntwo\n", "--system", "Be brief.", "--temperature", "0")
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "two"},
    ]
    assert script.asked[1]["messages"] == expected
    assert script.asked[1]["temperature"] == 0


def test_commands_change_what_is_sent(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/reset forgets, /system instructs, /quit leaves before the rest, others are named."""
    said = "one\n/reset\n/system Rhyme.\ntwo\n/dance\n/quit\nthree\n"
    assert _chat(monkeypatch, script, said) == 0
    asked = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "two"}]
    assert script.asked[1]["messages"] == asked
    assert len(script.asked) == 2
    assert "no command /dance" in capsys.readouterr().out


def test_nothing_listening_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the address and how to start something there."""
    assert main(["chat", "--url", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr().err
    assert "nothing answers at http://127.0.0.1:9" in shown
    assert "`twolane up`" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "status"), [("localhost:8000", 2), ("ftp://localhost", 2)], ids=["no scheme", "wrong scheme"]
)
def test_a_malformed_address_is_a_wrong_command_line(url: str, status: int) -> None:
    """It is refused before a connection is tried."""
    assert main(["chat", "--url", url]) == status


def test_an_error_of_the_server_is_shown_and_the_chat_goes_on(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server's words, its status and when to come back; the question is not kept."""
    script.status = 429
    assert _chat(monkeypatch, script, "one\ntwo\n") == 0
    assert capsys.readouterr().err.count("come back later (status 429, retry after 3 s)") == 2
    assert script.asked[1]["messages"] == [{"role": "user", "content": "two"}]


def test_an_error_in_the_middle_keeps_what_was_said(script: Script) -> None:
    """The conversation stays user, assistant, user."""
    script.error_after = 2
    conversation = Conversation(Endpoint(script.url), "stub")
    pieces: list[str] = []
    with pytest.raises(Exception, match="worker lost"):
        pieces.extend(conversation.ask("one"))
    assert conversation.turns[1] == {"role": "assistant", "content": "Hello"}


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    """What came is kept, and the stream is closed so that the server stops."""
    closed = []

    class Interrupted(Conversation):
        def ask(self, text: str) -> Generator[str, None, None]:
            try:
                yield "Once upon"
                raise KeyboardInterrupt
            finally:
                closed.append(text)

    chat.answer(Interrupted(Endpoint("http://127.0.0.1:9"), "stub"), "a story")
    assert capsys.readouterr().out == "Once upon\n(stopped)\n"
    assert closed == ["a story"]


def test_the_key_is_sent_and_never_shown(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """It travels in the header, from the environment."""
    monkeypatch.setenv("TWOLANE_CHAT_API_KEY", "sesame-123")
    _chat(monkeypatch, script, "Hi\n")
    assert script.authorizations == ["Bearer sesame-123"]
    assert "sesame" not in repr(Endpoint(script.url, "sesame-123"))


def test_a_proxy_never_stands_before_this_machine(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Companies set one for everything; a local server must be reached all the same."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    assert Endpoint(script.url).models() == ["stub"]


@pytest.mark.parametrize(
    ("hosts", "local"),
    [
        (("127.0.0.1", "127.8.0.1", "::1", "localhost", "a.localhost"), True),
        (("10.0.0.1", "example.org", "localhost.example.org", ""), False),
    ],
)
def test_only_loopback_addresses_are_this_machine(hosts: tuple[str, ...], local: bool) -> None:
    """Everything else goes as the environment says."""
    assert {is_local(host) for host in hosts} == {local}
