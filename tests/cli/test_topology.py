"""What `twolane up` would run, from its flags alone."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from twolane.cli import topology
from twolane.cli.topology import UpConfig
from twolane.cli.up import make_certificates
from twolane.core.errors import ConfigError
from twolane.rpc.tls import Tls


def _config(tmp_path: Path, *flags: str) -> UpConfig:
    model = tmp_path / "a-model"
    model.mkdir(exist_ok=True)
    ports = [] if "--port" in flags else ["--port", "0"]
    return UpConfig.from_args(["--model", str(model), *ports, "--grpc-port", "0", *flags])


def _value(args: tuple[str, ...], flag: str) -> str:
    return args[args.index(flag) + 1]


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        ((), {"prefill": 1, "decode": 1, "mixed": 0}),
        (("--prefill", "3"), {"prefill": 3, "decode": 1, "mixed": 0}),
        (("--mixed", "2"), {"prefill": 0, "decode": 0, "mixed": 2}),
        (("--mixed", "1", "--prefill", "1", "--decode", "2"), {"prefill": 1, "decode": 2, "mixed": 1}),
    ],
)
def test_the_flags_say_how_many_workers_of_each_role_run(
    flags: tuple[str, ...], counts: dict[str, int], tmp_path: Path
) -> None:
    """One pair by default, and none beside mixed ones unless asked for."""
    config = _config(tmp_path, *flags)
    topology.check(config)
    roles = [_value(spec.args, "--role") for spec in topology.worker_children(config, 9200)]
    assert {role: roles.count(role) for role in counts} == counts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prefill", "0"), "--prefill and --decode 1 or more"),
        (("--mixed", "1", "--decode", "1"), "--prefill and --decode 1 or more"),
        (("--prefill", "0", "--decode", "0"), "no worker"),
        (("--prefill", "-1"), "--prefill"),
        (("--threads", "many"), "--threads"),
    ],
)
def test_workers_that_cannot_serve_are_refused(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """The message names the flags."""
    with pytest.raises(ConfigError, match=message):
        topology.check(_config(tmp_path, *flags))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before anything is started."""
    config = UpConfig.from_args(["--model", str(tmp_path / "none"), "--port", "0", "--grpc-port", "0"])
    with pytest.raises(ConfigError, match="no such folder"):
        topology.check(config)


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_taken_port_is_named_with_its_flag(flag: str, tmp_path: Path) -> None:
    """Nobody has to read logs to find a port that is taken."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = _config(tmp_path, "--port", "0", flag, str(port))
        with pytest.raises(
            ConfigError, match=f"port {port} on 127.0.0.1 is taken; choose another with {flag} "
        ):
            topology.check(config)


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    """An address of another machine can't be listened on."""
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1"):
        topology.check(_config(tmp_path, "--host", "192.0.2.1"))


def test_two_equal_ports_are_refused(tmp_path: Path) -> None:
    """HTTP and gRPC are two servers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    with pytest.raises(ConfigError, match="must differ"):
        topology.check(_config(tmp_path, "--port", free, "--grpc-port", free))


def test_the_api_key_is_on_no_command_line(tmp_path: Path) -> None:
    """Process lists show command lines; the router gets its key by the environment."""
    config = _config(tmp_path, "--api-key", "sesame-123")
    router = topology.router_child(config, 9200)
    assert not any("sesame" in word for word in router.args)
    assert router.environment == {"TWOLANE_ROUTER_API_KEYS": "sesame-123"}
    assert "sesame" not in repr(config)


def test_every_child_finds_the_broker_and_writes_its_own_files(tmp_path: Path) -> None:
    """No two children share a log or a port file."""
    config = _config(tmp_path, "--prefill", "2", "--decode", "2", "--log-dir", str(tmp_path / "logs"))
    workers = topology.worker_children(config, 1234)
    router = topology.router_child(config, 1234)
    assert {_value(spec.args, "--broker") for spec in workers} == {"127.0.0.1:1234"}
    assert _value(router.args, "--broker") == "127.0.0.1:1234"
    specs = [topology.broker_child(config), *workers, router]
    assert len({spec.log_path for spec in specs} | {spec.port_file for spec in specs}) == 2 * len(specs)
    assert all(_value(spec.args, "--port-file") == str(spec.port_file) for spec in specs)


def test_the_models_name_is_its_folders_unless_given(tmp_path: Path) -> None:
    """Router and workers must agree on it."""
    assert topology.served_name(_config(tmp_path)) == "a-model"
    assert topology.served_name(_config(tmp_path, "--served-model-name", "x")) == "x"


def test_threads_bound_the_maths_libraries_too(tmp_path: Path) -> None:
    """They read the environment when they are loaded."""
    for spec in topology.worker_children(_config(tmp_path, "--threads", "3"), 9200):
        assert spec.environment["OMP_NUM_THREADS"] == "3"
        assert _value(spec.args, "--num-threads") == "3"


def test_every_process_gets_the_certificate_of_its_component(tmp_path: Path) -> None:
    """With --tls; without it nobody gets one."""
    for flags in ((), ("--tls",)):
        config = _config(tmp_path, "--log-dir", str(tmp_path / "logs"), *flags)
        children = [topology.broker_child(config), topology.router_child(config, 9200)]
        children += topology.worker_children(config, 9200)
        folders = [Path(_value(spec.args, "--tls-dir")) for spec in children if "--tls-dir" in spec.args]
        expected = ["broker", "router", "worker", "worker"] if flags else []
        assert [folder.name for folder in folders] == expected
        assert {folder.parent for folder in folders} <= {tmp_path / "logs" / "tls"}


def test_the_certificates_of_a_trial_are_for_one_deployment_and_for_this_user(tmp_path: Path) -> None:
    """Each component can start with its folder; nobody else may read the keys."""
    make_certificates(tmp_path / "tls")
    found = {component: Tls(tmp_path / "tls" / component) for component in ("broker", "router", "worker")}
    assert {tls.deployment for tls in found.values()} == {"local"}
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "tls").rglob("tls.key")}
    assert modes == {0}
