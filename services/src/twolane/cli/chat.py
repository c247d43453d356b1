"""`twolane chat`: a conversation in the terminal with any OpenAI-compatible address.

On a terminal it edits lines and remembers them; from a pipe it reads one question a line and prints
plain answers. Ctrl-C stops the answer, not the program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from twolane.cli.conversation import Conversation, Endpoint
from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError, TwolaneError

HELP = """\
/system TEXT  give an instruction that stands before the conversation (without TEXT: remove it)
/reset        forget what was said
/quit         leave (Ctrl-D does too)
Ctrl-C        stop the answer"""


class ChatConfig(ProcessConfig):
    """Flags of `twolane chat`."""

    process: ClassVar[str] = "chat"

    url: str = "http://127.0.0.1:8000"
    """Address of the server, without /v1."""
    model: str = ""
    """Who answers; empty: the first model the server names."""
    system: str = ""
    """Instruction that stands before the conversation."""
    temperature: float | None = Field(default=None, ge=0)
    """Chance in the answers; unset: the server's default, 0: none."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer in tokens; unset: the server's default."""
    api_key: SecretStr | None = None
    """Key to show; better given as TWOLANE_CHAT_API_KEY, which no process list shows."""


class Leave(Exception):
    """The person wants to leave."""


def main(argv: list[str]) -> int:
    """Talks until the input ends; returns 0."""
    config = ChatConfig.from_args(argv)
    key = config.api_key.get_secret_value() if config.api_key else ""
    endpoint = Endpoint(check_url(config.url), key)
    models = endpoint.models()
    if not models and not config.model:
        raise ConfigError(f"{config.url} serves no model now; wait for its workers, or give --model")
    options = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    conversation = Conversation(endpoint, config.model or models[0], config.system, given)
    try:
        if sys.stdin.isatty():
            print(f"{conversation.model} at {config.url}; /help lists commands")
            talk(conversation, terminal_reader())
        else:
            talk(conversation, plain_line)
    except (Leave, EOFError):
        pass
    return 0


def check_url(url: str) -> str:
    """The address without its last slash or /v1; raises ConfigError if it is none."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url}: must start with http:// or https://")
    return url.rstrip("/").removesuffix("/v1")


def terminal_reader() -> Callable[[], str]:
    """Reads lines with editing and history."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()

    def read() -> str:
        while True:
            try:
                return session.prompt("› ")
            except KeyboardInterrupt:
                print("/quit or Ctrl-D leaves")

    return read


def plain_line() -> str:
    """The next line of stdin; raises EOFError at its end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def talk(conversation: Conversation, read: Callable[[], str]) -> None:
    """Reads and answers until `read` raises EOFError or the person leaves (Leave)."""
    while True:
        line = read().strip()
        if line.startswith("/"):
            obey(conversation, line)
        elif line:
            answer(conversation, line)


def obey(conversation: Conversation, line: str) -> None:
    """Carries out a command; raises Leave for /quit."""
    command, _, rest = line.partition(" ")
    if command in {"/quit", "/exit"}:
        raise Leave
    if command == "/reset":
        conversation.reset()
        print("forgotten")
    elif command == "/system":
        conversation.system = rest.strip()
        print("set" if conversation.system else "removed")
    elif command == "/help":
        print(HELP)
    else:
        print(f"no command {command}; /help lists them")


def answer(conversation: Conversation, question: str) -> None:
    """Prints an answer as it comes; an error or Ctrl-C ends it, not the program."""
    pieces = conversation.ask(question)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print("\n(stopped)")
    except TwolaneError as error:
        print(f"\n{error.message}", file=sys.stderr)
    finally:
        # Closes the connection at once: the server must not go on for nobody.
        pieces.close()
