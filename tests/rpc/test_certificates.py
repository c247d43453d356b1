"""A folder of certificates is judged when it is read: each fault has words of its own, without secrets."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.rpc.secret_volume import DEPLOYMENT, HOUR, SecretVolume, authority, certificate
from twolane.core.errors import ConfigError
from twolane.rpc.issuing import KeyPair, issue, write_folder
from twolane.rpc.tls import CHECK_S, REMIND_S, Tls, open_tls


class Clock:
    """A monotonic clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _folder(path: Path, pair: KeyPair, *trusted: KeyPair) -> Path:
    write_folder(path, pair, b"".join(each.certificate for each in trusted))
    return path


def test_a_good_folder_says_whose_it_is(tmp_path: Path) -> None:
    """The deployment follows from the name in the certificate, the names of peers from the deployment."""
    signer = authority()
    tls = Tls(_folder(tmp_path / "tls", certificate(signer), signer))
    assert tls.deployment == DEPLOYMENT
    assert tls.name_of("broker") == f"broker.{DEPLOYMENT}"
    assert tls.is_ours((f"router.{DEPLOYMENT}",))
    assert not tls.is_ours(("router.other.team.svc",))
    assert not tls.is_ours((DEPLOYMENT, f"stranger.{DEPLOYMENT}"))
    assert open_tls(None) is None


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize(("fault", "words"), [("gone", "No such file"), ("garbage", "in PEM form")])
def test_a_missing_or_malformed_file_is_named(tmp_path: Path, name: str, fault: str, words: str) -> None:
    """With what the folder must hold; nothing of its content is repeated."""
    signer = authority()
    folder = _folder(tmp_path / "tls", certificate(signer), signer)
    if fault == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_text("private words")
    with pytest.raises(ConfigError) as caught:
        Tls(folder)
    assert words in caught.value.message
    assert str(folder / name) in caught.value.message
    assert "private words" not in caught.value.message


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """The usual slip of a hand."""
    signer = authority()
    mine, other = certificate(signer), certificate(signer)
    with pytest.raises(ConfigError, match=r"tls\.key is not the key of .*tls\.crt"):
        Tls(_folder(tmp_path / "tls", KeyPair(mine.certificate, other.key), signer))


def test_a_certificate_of_a_strange_authority_is_refused(tmp_path: Path) -> None:
    """Peers would refuse it; the process says so before it tries."""
    with pytest.raises(ConfigError, match=r"no authority in .*ca\.crt has signed"):
        Tls(_folder(tmp_path / "tls", certificate(authority()), authority()))


def test_an_expired_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    """With the moment of its end."""
    signer = authority()
    folder = _folder(tmp_path / "tls", certificate(signer, age=2 * HOUR), signer)
    with pytest.raises(ConfigError, match=r"expired at 20\d\d-.* UTC: renew it"):
        Tls(folder)


def test_a_certificate_without_our_form_of_name_is_refused(tmp_path: Path) -> None:
    """Between processes; clients of the public port may be shown any."""
    signer = authority()
    public = issue(signer, ["api.example.com"], datetime.now(UTC), HOUR)
    folder = _folder(tmp_path / "tls", public, signer)
    with pytest.raises(ConfigError, match=r"is for api\.example\.com; its name must be one of router\."):
        Tls(folder)
    (folder / "ca.crt").unlink()
    assert Tls(folder, mutual=False).current().names == ("api.example.com",)


def test_exchanged_files_count_from_the_next_look_on(tmp_path: Path) -> None:
    """A look costs three stats, so it is taken at most once a second; the old files may be gone by then."""
    first, second, clock = authority(), authority(), Clock()
    volume = SecretVolume(tmp_path / "tls", certificate(first), [first])
    tls = Tls(volume.folder, clock=clock)
    before = tls.current()
    volume.exchange(certificate(second), [first, second])
    assert tls.current() is before
    clock.now_s += CHECK_S
    after = tls.current()
    assert after is not before
    assert after.authorities == first.certificate + second.certificate
    assert tls.current() is after


def test_files_that_do_not_fit_together_yet_are_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hand copies one file after the other; the old certificates hold until all are there."""
    signer, clock = authority(), Clock()
    tls = Tls(_folder(tmp_path / "tls", certificate(signer), signer), clock=clock)
    before, new = tls.current(), certificate(signer)
    (tmp_path / "tls" / "tls.crt").write_bytes(new.certificate)
    for _ in range(3):
        clock.now_s += CHECK_S
        assert tls.current() is before
    assert caplog.text.count("not used yet") == 1
    (tmp_path / "tls" / "tls.key").write_bytes(new.key)
    clock.now_s += CHECK_S
    assert tls.current().chain == new.certificate
    assert "BEGIN" not in caplog.text


def test_a_certificate_of_another_deployment_never_replaces_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The identity of a running process does not change."""
    signer, clock = authority(), Clock()
    volume = SecretVolume(tmp_path / "tls", certificate(signer), [signer])
    tls = Tls(volume.folder, clock=clock)
    before = tls.current()
    volume.exchange(certificate(signer, deployment="other.team.svc"), [signer])
    clock.now_s += CHECK_S
    assert tls.current() is before
    assert "is for other.team.svc, not demo.team.svc" in caplog.text


def test_an_end_that_nobody_prepares_for_is_said_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning when renewal is late, and the metric has the moment."""
    signer, clock = authority(), Clock()
    folder = _folder(tmp_path / "tls", certificate(signer, age=HOUR * 0.95), signer)
    tls, registry = Tls(folder, clock=clock), CollectorRegistry()
    tls.watch_expiry(registry)
    ends_s = registry.get_sample_value("twolane_tls_certificate_expiry_timestamp_seconds")
    assert ends_s == tls.current().ends.timestamp()
    clock.now_s += REMIND_S
    tls.current()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "should have renewed it by now" in warnings[0].getMessage()
