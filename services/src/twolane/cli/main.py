"""Finds the verb of a `twolane` command line and runs its main; the console script calls it.

A verb's module is imported only when that verb runs, so `twolane --help` loads neither torch nor
gRPC. Errors become one line on stderr and an exit status here, and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STATUS_ERROR = 1
STATUS_USAGE = 2
STATUS_INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True, slots=True)
class Verb:
    """What runs under a name: `function` of `module`, from arguments to an exit status."""

    name: str
    module: str
    summary: str
    function: str = "main"


VERBS = (
    Verb("up", "twolane.cli.up", "start everything on this machine and print the address"),
    Verb("chat", "twolane.cli.chat", "talk to a model in the terminal"),
    Verb("router", "twolane.router.main", "run a router: OpenAI REST and gRPC front"),
    Verb("worker", "twolane.worker.main", "run a worker: prefill, decode or mixed"),
    Verb("broker", "twolane.broker.main", "run the broker: leases, registry, prefix index"),
    Verb("operator", "twolane.operator.main", "run the Kubernetes operator"),
    Verb("operator leave", "twolane.operator.leave", "stop the operator and let its ModelDeployments go"),
    Verb("fetch", "twolane.operator.fetch_model", "copy a model from S3 or a hub into a folder"),
    Verb("bench serve", "twolane.bench.main", "replay a trace against an OpenAI address"),
    Verb(
        "bench policies", "twolane.sim.command", "compare scheduling policies in simulation", "compare_main"
    ),
    Verb("profile", "twolane.cli.profile", "time the engine's steps for the simulator"),
    Verb(
        "bench scaling",
        "twolane.sim.scaling_command",
        "compare scaling policies in simulation",
        "scaling_main",
    ),
    Verb("simulate", "twolane.sim.command", "simulate a cluster under a trace", "simulate_main"),
    Verb("inspect tls", "twolane.cli.inspect_tls", "show certificates, and whether a peer accepts them"),
    Verb("inspect leaks", "twolane.cli.inspect", "compare the books of broker and workers"),
    Verb("k8s status", "twolane.operator.plugin.status", "show a ModelDeployment down to its pods"),
    Verb(
        "k8s logs", "twolane.operator.plugin.request_log", "show all lines about one request, from every pod"
    ),
    Verb("k8s explain", "twolane.operator.plugin.explain", "say why each pool has the workers it has"),
    Verb("k8s doctor", "twolane.operator.plugin.doctor", "look at a cluster and say what to mend"),
    Verb("version", "twolane.cli.version", "print the version"),
)


def usage() -> str:
    """The help text: one line a verb."""
    width = max(len(verb.name) for verb in VERBS)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
    return "usage: twolane VERB [FLAGS]\n\n" + "\n".join(lines) + "\n\n`twolane VERB --help` lists its flags."


def find_verb(argv: Sequence[str]) -> tuple[Verb, list[str]] | None:
    """Splits a command line into its verb, of one or two words, and the verb's own arguments."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        for verb in VERBS:
            if verb.name == name and len(argv) >= words:
                return verb, list(argv[words:])
    return None


def explain_unknown(argv: Sequence[str]) -> str:
    """Says that no verb fits and names the nearest ones."""
    asked = argv[0]
    family = [verb.name for verb in VERBS if verb.name.startswith(asked + " ")]
    if family:
        asked = " ".join(word for word in argv[:2] if not word.startswith("-"))
        near = (asked != argv[0] and difflib.get_close_matches(asked, family, n=1)) or family
    else:
        first_words = {verb.name.split()[0] for verb in VERBS}
        close = difflib.get_close_matches(asked, sorted(first_words), n=1)
        near = [verb.name for verb in VERBS if verb.name.split()[0] in close]
    hint = f"; did you mean {' or '.join(f'`twolane {name}`' for name in near)}?" if near else ""
    return f"twolane: no verb {asked!r}{hint} (`twolane --help` lists them)"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit status.

    0 success, 1 a failure, 2 a wrong command line or configuration, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in {"-h", "--help", "help"}:
        print(usage(), file=sys.stdout if args else sys.stderr)
        return 0 if args else STATUS_USAGE
    if args[0] == "--version":
        args[0] = "version"
    found = find_verb(args)
    if found is None:
        print(explain_unknown(args), file=sys.stderr)
        return STATUS_USAGE
    verb, rest = found
    return _run(verb, rest)


def kubectl_main() -> int:
    """What `kubectl twolane ...` runs: the k8s verbs without that word."""
    args = sys.argv[1:]
    return main(["k8s", *args] if args and not args[0].startswith("-") else args or ["--help"])


def _run(verb: Verb, args: list[str]) -> int:
    """Runs a verb; turns its errors into a line on stderr and a status."""
    # Imported here: the plain help has no use for either.
    from twolane.cli.orphan import watch_launcher
    from twolane.core.errors import ConfigError, TwolaneError

    try:
        watch_launcher()
        run: Callable[[list[str]], int] = getattr(importlib.import_module(verb.module), verb.function)
        return run(args)
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    except TwolaneError as error:
        print(f"twolane {verb.name}: {error.message}", file=sys.stderr)
        return STATUS_USAGE if isinstance(error, ConfigError) else STATUS_ERROR
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; the interpreter's last flush must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_ERROR


if __name__ == "__main__":
    sys.exit(main())
