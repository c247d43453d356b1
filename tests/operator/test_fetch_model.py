"""What an init container does: copies a model whole or not at all, with the secrets it was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operator.model_sources import Hub, Store, serving
from twolane.core.errors import ConfigError, Unavailable
from twolane.operator.build.model_volume import model_volume
from twolane.operator.fetch_model import FetchConfig, fetch
from twolane.operator.resources.sources import Model

MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{...}",
    "model-00001-of-00001.safetensors": b"weights",
    "pytorch_model.bin": b"old weights",
    "original/params.json": b"other form",
}
NEEDED = ["config.json", "model-00001-of-00001.safetensors", "tokenizer.json"]


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _store(files: dict[str, bytes] | None = None) -> Store:
    return Store({f"tiny/{name}": content for name, content in (files or MODEL).items()})


def _config(source: str, endpoint: str, target: Path, *args: str) -> FetchConfig:
    return FetchConfig.from_args(["--source", source, "--endpoint", endpoint, "--target", str(target), *args])


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_model_comes_from_a_store_with_the_keys_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what workers read, signed with the key that the Secret gave."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    with serving(_store()) as store:
        fetch(_config("s3://models/tiny", store.url, tmp_path / "m"))
    assert _files(tmp_path / "m") == NEEDED
    assert (tmp_path / "m" / NEEDED[1]).read_bytes() == b"weights"
    assert all("the-key" in authorization for _, authorization in store.asked)


def test_a_model_comes_from_a_hub_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token of the environment, and without the library's own notes."""
    monkeypatch.setenv("HF_TOKEN", "hf_given")
    with serving(Hub(MODEL)) as hub:
        fetch(_config("hub://owner/tiny", hub.url, tmp_path / "m", "--revision", "v1"))
    assert _files(tmp_path / "m") == NEEDED
    assert any(path.endswith("/revision/v1") for path, _ in hub.asked)
    assert {authorization for _, authorization in hub.asked} == {"Bearer hf_given"}


@pytest.mark.parametrize("kind", ["s3", "hub"])
def test_a_router_fetches_no_weights(tmp_path: Path, kind: str) -> None:
    """They may be hundreds of gigabytes."""
    source = "s3://models/tiny" if kind == "s3" else "hub://owner/tiny"
    with serving(_store() if kind == "s3" else Hub(MODEL)) as server:
        fetch(_config(source, server.url, tmp_path / "m", "--no-weights"))
    assert _files(tmp_path / "m") == ["config.json", "tokenizer.json"]


def test_a_copy_that_broke_off_is_no_copy(tmp_path: Path) -> None:
    """The target appears whole or not at all, and the next attempt starts clean."""
    broken = {name: content for name, content in MODEL.items() if name != "config.json"}
    with serving(_store(broken)) as store, pytest.raises(ConfigError, match=r"has no config\.json"):
        fetch(_config("s3://models/tiny", store.url, tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []
    with serving(_store()) as store:
        fetch(_config("s3://models/tiny", store.url, tmp_path / "m"))
    assert _files(tmp_path / "m") == NEEDED


def test_a_whole_copy_is_not_fetched_again(tmp_path: Path) -> None:
    """Pods that share a claim find it."""
    (tmp_path / "m").mkdir()
    with serving(_store()) as store:
        fetch(_config("s3://models/tiny", store.url, tmp_path / "m"))
    assert store.asked == []


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The last line of the container is what `kubectl get md` shows."""
    with serving(_store()) as store, pytest.raises(ConfigError, match="s3://none/tiny: NoSuchBucket"):
        fetch(_config("s3://none/tiny", store.url, tmp_path / "m"))
    with serving(Hub(MODEL)) as hub, pytest.raises(ConfigError, match="Repository not found"):
        fetch(_config("hub://owner/none", hub.url, tmp_path / "m"))


def test_a_file_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    """A store's names are input like any other."""
    files = {"config.json": b"{}", "a/../../evil.json": b"{}"}
    with serving(_store(files)) as store, pytest.raises(ConfigError, match="outside of the model's folder"):
        fetch(_config("s3://models/tiny", store.url, tmp_path / "m"))
    assert not (tmp_path.parent / "evil.json").exists()


def test_the_arguments_of_init_containers_are_understood() -> None:
    """What the operator writes, the verb reads."""
    s3 = {"uri": "s3://b/m", "endpoint": "https://e:1", "region": "r"}
    for source in ({"s3": s3}, {"hub": {"repo": "o/n", "revision": "v2", "endpoint": "https://h"}}):
        volume = model_volume(Model.model_validate(source), weights=False)
        config = FetchConfig.from_args(volume.fetch_args)
        assert str(config.target) == volume.model_dir
        assert not config.weights


def test_a_store_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    """The kubelet starts the container again; nothing has to be changed."""
    with serving(_store()) as store:
        url = store.url
    with pytest.raises(Unavailable, match="no answer from the store"):
        fetch(_config("s3://models/tiny", url, tmp_path / "m"))
