"""What `twolane up` runs: its flags, and the command line of every child that follows from them.

Pure apart from a look at the folder of the model and at the ports; up.py starts what stands here.
"""

from __future__ import annotations

import errno
import importlib.resources
import os
import socket
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from twolane.cli.child import ChildSpec
from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError
from twolane.rpc.identity import Component

LOCAL = "127.0.0.1"


class UpConfig(ProcessConfig):
    """Flags of `twolane up`: a broker, workers and a router on this machine."""

    process: ClassVar[str] = "up"

    model: str = ""
    """Folder of a model in Hugging Face form; empty: the small demo model that comes with twolane."""
    served_model_name: str = ""
    """Name clients ask for; empty: the folder's name."""
    prefill: int | None = Field(default=None, ge=0, le=64)
    """Number of prefill workers; 1 unless there are only mixed ones."""
    decode: int | None = Field(default=None, ge=0, le=64)
    """Number of decode workers; 1 unless there are only mixed ones."""
    mixed: int = Field(default=0, ge=0, le=64)
    """Number of workers that do both; with --mixed alone there are no others."""
    host: str = LOCAL
    """Address the router listens on; the other processes listen on 127.0.0.1."""
    port: int = Field(default=8000, ge=0, le=65535)
    """HTTP port of the router; 0: any free one."""
    grpc_port: int = Field(default=9000, ge=0, le=65535)
    """gRPC port of the router; 0: any free one."""
    scheduler: str = ""
    """Prefill scheduling policy of the workers; empty: the workers' own default."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of each worker."""
    kv_memory_mib: int | None = Field(default=None, ge=1)
    """Memory for KV pages of each worker in MiB; unset: the workers' own default."""
    api_key: SecretStr | None = None
    """Key that clients must send; better given as TWOLANE_UP_API_KEY, which no process list shows."""
    tls: bool = False
    """Mutual TLS between the processes, by certificates that last as long as this runs; clients reach the
    router in plain text all the same."""
    log_dir: str = ""
    """Folder for the logs; empty: twolane/logs/port-<port> in the user's state folder."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is logged."""
    start_timeout_s: float = Field(default=300.0, gt=0)
    """How long everything may take to start."""
    stop_timeout_s: float = Field(default=20.0, gt=0)
    """How long an orderly stop may take; what still runs then is killed."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of workers by role."""
        others = 0 if self.mixed else 1
        prefill = others if self.prefill is None else self.prefill
        decode = others if self.decode is None else self.decode
        return {"prefill": prefill, "decode": decode, "mixed": self.mixed}


def check(config: UpConfig) -> None:
    """Refuses what can't work before anything is started.

    Raises:
        ConfigError: workers that can't serve together, no model folder, or a port that is taken.
    """
    counts = config.counts
    if bool(counts["prefill"]) != bool(counts["decode"]):
        raise ConfigError("prefill and decode workers need each other: give --prefill and --decode 1 or more")
    if not any(counts.values()):
        raise ConfigError("no worker: give --prefill and --decode, or --mixed, 1 or more")
    if not model_folder(config).is_dir():
        raise ConfigError(
            f"--model {config.model}: no such folder; it must hold a model in Hugging Face form"
        )
    for flag, port in (("--port", config.port), ("--grpc-port", config.grpc_port)):
        check_port(config.host, port, flag)
    if config.port and config.port == config.grpc_port:
        raise ConfigError(f"--port and --grpc-port are both {config.port}; they must differ")


def check_port(host: str, port: int, flag: str) -> None:
    """Raises ConfigError, naming port and flag, if nobody could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} on {host} is taken"
            else:
                reason = f"can't listen on {host}:{port}: {error.strerror}"
            raise ConfigError(f"{reason}; choose another with {flag} (0: any free one)") from error


def model_folder(config: UpConfig) -> Path:
    """Folder of the model to serve.

    Raises:
        ConfigError: the demo model is asked for and this installation has none.
    """
    if config.model:
        return Path(config.model).expanduser()
    try:
        # Of a folder without Python files only its entries have a definite place.
        return Path(str(importlib.resources.files("twolane.demo_model") / "config.json")).parent
    except ModuleNotFoundError as error:
        raise ConfigError("this installation has no demo model; give --model FOLDER") from error


def served_name(config: UpConfig) -> str:
    """Name of the model as clients give it."""
    if config.served_model_name:
        return config.served_model_name
    return model_folder(config).resolve().name if config.model else "twolane-demo"


def log_folder(config: UpConfig) -> Path:
    """Folder of logs and port files; not made here.

    Raises:
        ConfigError: no folder is given and the user has no home.
    """
    if config.log_dir:
        return Path(config.log_dir).expanduser().resolve()
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    except RuntimeError as error:
        raise ConfigError("this user has no home folder; say with --log-dir where logs go") from error
    # Launchers on any free port may run side by side.
    run = f"port-{config.port}" if config.port else f"pid-{os.getpid()}"
    return state / "twolane" / "logs" / run


def _child(
    config: UpConfig, name: str, args: list[str], environment: dict[str, str] | None = None
) -> ChildSpec:
    folder = log_folder(config)
    port_file = folder / f"{name}.ports.json"
    return ChildSpec(
        name=name,
        args=(*args, "--port-file", str(port_file), "--log-level", config.log_level),
        log_path=folder / f"{name}.log",
        port_file=port_file,
        environment=environment or {},
    )


def tls_folder(config: UpConfig) -> Path:
    """Folder of the certificates, one folder a component; they go when everything has stopped."""
    return log_folder(config) / "tls"


def _tls(config: UpConfig, component: Component) -> list[str]:
    return ["--tls-dir", str(tls_folder(config) / component)] if config.tls else []


def _drain(config: UpConfig) -> list[str]:
    """Lets a process end its own drain before its share of the stop (a third) is over."""
    return ["--drain-timeout-s", str(config.stop_timeout_s / 4)]


def broker_child(config: UpConfig) -> ChildSpec:
    """The broker, with its state in memory; no workers of an earlier run can come back to it."""
    broker = ["broker", "--host", LOCAL, "--port", "0", "--http-port", "0"]
    return _child(config, "broker", [*broker, "--settle-s", "0", *_tls(config, "broker")])


def worker_children(config: UpConfig, broker_port: int) -> list[ChildSpec]:
    """Every worker, prefill first."""
    common = ["--model-dir", str(model_folder(config).resolve()), "--served-model-name", served_name(config)]
    common += ["--broker", f"{LOCAL}:{broker_port}", "--host", LOCAL, "--port", "0", "--http-port", "0"]
    common += ["--num-threads", str(config.threads), *_drain(config), *_tls(config, "worker")]
    if config.kv_memory_mib is not None:
        common += ["--kv-memory-mib", str(config.kv_memory_mib)]
    if config.scheduler:
        common += ["--scheduler", config.scheduler]
    # Read by the maths libraries when they are loaded, before any flag is.
    threads = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return [
        _child(config, f"{role}-{number}", ["worker", "--role", role, *common], threads)
        for role, count in config.counts.items()
        for number in range(count)
    ]


def router_child(config: UpConfig, broker_port: int) -> ChildSpec:
    """The router; its API key goes by the environment, which no process list shows."""
    args = ["router", "--host", config.host, "--port", str(config.port), "--grpc-port", str(config.grpc_port)]
    args += ["--broker", f"{LOCAL}:{broker_port}", *_drain(config), *_tls(config, "router")]
    args += ["--model-dir", str(model_folder(config).resolve()), "--served-model-name", served_name(config)]
    environment = {}
    if config.api_key is not None:
        environment["TWOLANE_ROUTER_API_KEYS"] = config.api_key.get_secret_value()
    return _child(config, "router", args, environment)
