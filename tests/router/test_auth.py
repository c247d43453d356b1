"""API keys that come and go while the router runs: given, taken away, and files that are no keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twolane.core.errors import Unauthenticated
from twolane.router.auth import ApiKeys, read_api_keys


def _knows(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check(f"Bearer {key}")
    except Unauthenticated:
        return False
    return True


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A file as a kubelet mounts a Secret: by a link to a folder that is exchanged as a whole."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "keys").write_text("alpha\nbeta\n", encoding="utf-8")
    (tmp_path / "current").symlink_to("first")
    return tmp_path / "current" / "keys"


def _exchange(volume: Path, text: str | None) -> None:
    root = volume.parent.parent
    (root / "second").mkdir()
    if text is not None:
        (root / "second" / "keys").write_text(text, encoding="utf-8")
    (root / "new").symlink_to("second")
    os.replace(root / "new", root / "current")


def test_a_changed_secret_gives_and_takes_keys(volume: Path) -> None:
    """Keys of the environment stay."""
    keys = read_api_keys("fixed", volume)
    assert [_knows(keys, key) for key in ("fixed", "alpha", "beta", "gamma")] == [True, True, True, False]
    _exchange(volume, "beta\n# a comment\ngamma\n")
    assert _knows(keys, "alpha")
    keys.refresh()
    assert [_knows(keys, key) for key in ("fixed", "alpha", "beta", "gamma")] == [True, False, True, True]


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_file_without_keys_never_lets_everybody_in(
    volume: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The old keys hold until there are new ones; the log names no key."""
    keys = read_api_keys("", volume)
    _exchange(volume, text)
    keys.refresh()
    assert keys.required
    assert _knows(keys, "alpha")
    assert not _knows(keys, "gamma")
    assert "the old ones hold" in caplog.text
    assert "alpha" not in caplog.text
    volume.write_text("gamma\n", encoding="utf-8")
    keys.refresh()
    assert _knows(keys, "gamma")
    assert not _knows(keys, "alpha")


def test_keys_without_a_file_stay_as_they_are() -> None:
    """Nothing is looked at."""
    keys = read_api_keys("fixed", None)
    keys.refresh()
    assert _knows(keys, "fixed")
    assert not read_api_keys("", None).required
