"""`twolane up`: everything on this machine, started, shown, watched and stopped.

The broker comes first, then the workers, then the router; they stop in the reverse order, each with
time to drain. Whatever happens, no process stays behind.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
import urllib.error
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from rich.console import Console

from twolane.cli import topology
from twolane.cli.child import ChildSpec
from twolane.cli.http_opener import opener_for
from twolane.cli.progress import Progress
from twolane.cli.supervisor import Running, StopAsked, Supervisor
from twolane.cli.topology import UpConfig
from twolane.core.errors import ConfigError, TwolaneError
from twolane.rpc.identity import COMPONENTS, dns_name
from twolane.rpc.issuing import issue, make_authority, write_folder

PROBE_TIMEOUT_S = 2.0
LOCAL_DEPLOYMENT = "local"
TLS_LIFETIME = timedelta(days=365)


class StopSignals:
    """Counts the signals that ask to stop, and cuts pauses short when one comes."""

    def __init__(self) -> None:
        self._count = 0
        self._came = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._count += 1
        self._came.set()

    def count(self) -> int:
        """How many have come."""
        return self._count

    def pause(self, seconds: float) -> None:
        """Sleeps, but not past the next signal."""
        self._came.wait(seconds)
        self._came.clear()


class Readiness:
    """Asks a router's /readyz; remembers the last answer for people."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._last_answer = "no answer"

    def look(self) -> bool:
        """Whether the router takes requests now."""
        try:
            with opener_for(self.url).open(f"{self.url}/readyz", timeout=PROBE_TIMEOUT_S):
                return True
        except urllib.error.HTTPError as error:
            self._last_answer = error.read(1000).decode(errors="replace").strip()
        except OSError as error:
            self._last_answer = str(error)
        return False

    def explain(self) -> str:
        """Why it is not ready, in the router's own words."""
        return f"router was not ready in time (--start-timeout-s): {self._last_answer}"


def main(argv: list[str]) -> int:
    """Runs until a signal; returns 0 after an orderly stop, 1 if a child ended by itself."""
    config = UpConfig.from_args(argv)
    topology.check(config)
    folder = make_log_folder(topology.log_folder(config))
    if config.tls:
        make_certificates(topology.tls_folder(config))
    signals = StopSignals()
    supervisor = Supervisor(time.monotonic, signals.pause, signals.count)
    console = Console()
    status = 0
    try:
        url = bring_up(config, supervisor, console)
        say_ready(config, url, folder, console)
        supervisor.watch()
    except StopAsked:
        console.print("\nstopping; once more to hurry", highlight=False)
    except TwolaneError as error:
        status = 1
        console.print(
            f"twolane up: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"logs: {folder}", markup=False, highlight=False, soft_wrap=True)
    finally:
        killed = supervisor.stop(config.stop_timeout_s)
        for path in folder.glob("*.ports.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(topology.tls_folder(config), ignore_errors=True)
    if killed:
        console.print(f"killed what did not stop in time: {', '.join(killed)}", highlight=False)
    return status


def make_log_folder(folder: Path) -> Path:
    """Makes the folder of the logs.

    Raises:
        ConfigError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--log-dir {folder}: {error.strerror}") from error
    return folder


def make_certificates(folder: Path) -> None:
    """An authority whose key is kept nowhere, and what it has signed for each component."""
    now = datetime.now(UTC)
    authority = make_authority(LOCAL_DEPLOYMENT, now, TLS_LIFETIME)
    for component in COMPONENTS:
        pair = issue(authority, [dns_name(component, LOCAL_DEPLOYMENT)], now, TLS_LIFETIME)
        write_folder(folder / component, pair, authority.certificate)


def bring_up(config: UpConfig, supervisor: Supervisor, console: Console) -> str:
    """Starts all stages; returns the router's HTTP address once it takes requests."""
    deadline_s = time.monotonic() + config.start_timeout_s
    with Progress(console, time.monotonic) as progress:

        def start(specs: list[ChildSpec], doing: str) -> list[Running]:
            progress.begin(specs, doing)
            return supervisor.start(specs)

        broker = start([topology.broker_child(config)], "starting")
        broker_port = supervisor.wait_ports(broker, deadline_s, progress.ready)["broker"]["grpc"]
        loading = f"loading {topology.served_name(config)}"
        workers = start(topology.worker_children(config, broker_port), loading)
        # It reads its tokenizer while the workers load the model.
        router = start([topology.router_child(config, broker_port)], "starting")
        supervisor.wait_ports(workers, deadline_s, progress.ready)
        http_port = supervisor.wait_ports(router, deadline_s, lambda _: None)["router"]["http"]
        readiness = Readiness(f"http://{reachable(config.host)}:{http_port}")
        supervisor.wait_for(readiness.look, deadline_s, readiness.explain)
        progress.ready("router")
    return readiness.url


def reachable(host: str) -> str:
    """The address on this machine by which a server bound to `host` is reached, as a URL writes it."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"[{local}]" if ":" in local else local


def own_command() -> str:
    """How a person calls this installation's `twolane` from the folder they are in."""
    script = Path(sys.executable).with_name("twolane")
    found = shutil.which("twolane")
    if found is not None and Path(found) == script:
        return "twolane"
    if not script.exists():
        return f"{sys.executable} -m twolane.cli.main"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def say_ready(config: UpConfig, url: str, folder: Path, console: Console) -> None:
    """Prints the address, a command line to try, how to chat, and where the logs are."""
    body = {
        "model": topology.served_name(config),
        "stream": True,
        "messages": [{"role": "user", "content": "Tell me a short story."}],
    }
    workers = ", ".join(f"{count} {role}" for role, count in config.counts.items() if count)
    key = " -H 'authorization: Bearer '$KEY" if config.api_key else ""
    lines = [
        f"\ntwolane is ready: {url}   (model {body['model']}; workers: {workers})",
        "\nAsk it:",
        f"  curl -N {url}/v1/chat/completions{key} -H 'content-type: application/json' \\",
        f"    -d '{json.dumps(body)}'",
        "\nChat with it, in another terminal:",
        f"  {own_command()} chat --url {url}",
        f"\nLogs: {folder}",
        "Ctrl-C stops everything.",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
