"""Copies a model into a folder before a process starts: `twolane fetch`, run by init containers.

The folder appears in one step when every file is there, so that pods which share a volume may fetch at
the same time, and a copy that was broken off is never taken for a whole one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError, Unavailable
from twolane.telemetry.logs import configure_logging

if TYPE_CHECKING:
    import minio

log = logging.getLogger(__name__)

# Weights in forms that no worker reads.
_NEVER = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".tflite")
_WEIGHTS = (".safetensors",)


class FetchConfig(ProcessConfig):
    """What to copy, and where to."""

    process: ClassVar[str] = "fetch"

    source: str = Field(pattern=r"^(s3://[^/]+|hub://[^/]+/[^/]+)(/.*)?$")
    """s3://bucket/folder or hub://owner/name."""
    target: Path
    """Folder to make; one that exists is taken as it is."""
    endpoint: str = ""
    """Address of the store or the hub; empty: AWS, or the public hub."""
    region: str = ""
    """Region of the store."""
    revision: str = "main"
    """Branch, tag or commit of a hub's repository."""
    weights: bool = True
    """Whether to copy the weights: a router needs the tokenizer and the configuration alone."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level logged."""

    def wants(self, name: str) -> bool:
        """Whether a file of the source is needed."""
        unwanted = _NEVER if self.weights else (*_NEVER, *_WEIGHTS)
        return not name.endswith((*unwanted, "/")) and not name.startswith(("original/", "."))


def fetch(config: FetchConfig) -> None:
    """Makes the target folder.

    Raises:
        ConfigError: the source has no model, or may not be read.
        Unavailable: the store or the hub does not answer.
    """
    if config.target.is_dir():
        log.info("there already", extra={"target": str(config.target)})
        return
    with _arriving(config.target) as folder:
        (_fetch_s3 if config.source.startswith("s3://") else _fetch_hub)(config, folder)
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{config.source} has no config.json; name the folder of a model in Hugging Face form"
            )


@contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A folder beside the target that becomes it in the end; whoever is first wins."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    # Another pod may run under another user of the same group.
    folder.chmod(0o750)
    try:
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            log.info("another process was faster", extra={"target": str(target)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch_s3(config: FetchConfig, folder: Path) -> None:
    # Only this verb needs it, and only for this source.
    import minio
    import urllib3

    place = urlsplit(config.source)
    bucket, prefix = place.netloc, place.path.strip("/")
    store = _store(config)
    try:
        found = store.list_objects(bucket, prefix=f"{prefix}/" if prefix else None, recursive=True)
        names = [item.object_name for item in found if item.object_name]
        for name in names:
            relative = name.removeprefix(prefix).lstrip("/")
            if config.wants(relative):
                log.info("fetching", extra={"file": relative})
                store.fget_object(bucket, name, str(_inside(folder, relative)))
    except minio.error.S3Error as error:
        raise ConfigError(f"{config.source}: {error.code}: {error.message}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Unavailable(f"{config.source}: no answer from the store: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"the store names a file outside of the model's folder: {name}")
    return path


def _store(config: FetchConfig) -> minio.Minio:
    import minio
    from minio.credentials.providers import EnvAWSProvider, IamAwsProvider, Provider

    endpoint = urlsplit(config.endpoint if "//" in config.endpoint else f"https://{config.endpoint}")
    provider: Provider | None = None
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        provider = EnvAWSProvider()
    elif os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        provider = IamAwsProvider()
    return minio.Minio(
        endpoint.netloc or "s3.amazonaws.com",
        region=config.region or None,
        secure=endpoint.scheme == "https",
        credentials=provider,
    )


def _fetch_hub(config: FetchConfig, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    place = urlsplit(config.source)
    unwanted = [f"*{ending}" for ending in (*_NEVER, *(() if config.weights else _WEIGHTS))]
    try:
        snapshot_download(
            f"{place.netloc}{place.path}",
            revision=config.revision,
            endpoint=config.endpoint or None,
            token=os.environ.get("HF_TOKEN") or False,
            local_dir=folder,
            ignore_patterns=[*unwanted, "original/*", ".*"],
        )
    except HfHubHTTPError as error:
        raise ConfigError(f"{config.source} at {config.revision}: {error.server_message or error}") from error
    except OSError as error:
        raise Unavailable(f"{config.source}: no answer from the hub: {error}") from error
    # The library's own notes about the download.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    """Copies a model; returns the exit status."""
    config = FetchConfig.from_args(argv)
    configure_logging("fetch", config.log_level)
    # One line a chunk is too much for a log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    fetch(config)
    return 0
