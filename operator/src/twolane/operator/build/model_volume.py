"""How the files of a model get into a pod: a mounted volume, or an init container that fetches them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from twolane.operator.resources.shape import Json
from twolane.operator.resources.sources import HubSource, Model, S3Source

MOUNT = "/model"
_VOLUME = "model"


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """What a pod needs to read a model.

    Attributes:
        model_dir: folder of the model inside the container.
        volumes: volumes of the pod.
        mounts: mounts of the main container.
        fetch_args: arguments of `twolane fetch`; empty when nothing is fetched.
        fetch_env: environment of the fetching container.
    """

    model_dir: str
    volumes: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)
    fetch_args: list[str] = field(default_factory=list)
    fetch_env: list[Json] = field(default_factory=list)


def model_volume(model: Model, weights: bool = True) -> ModelVolume:
    """The volume for a source; without `weights` a fetched copy of a pod's own leaves them out."""
    if model.s3 is not None:
        return _fetched(model.s3, _s3_args(model.s3), _s3_env(model.s3), weights)
    if model.hub is not None:
        return _fetched(model.hub, _hub_args(model.hub), _hub_env(model.hub), weights)
    if model.pvc is not None:
        claim = {"claimName": model.pvc.claim_name, "readOnly": True}
        return _mounted({"persistentVolumeClaim": claim}, model.pvc.path)
    if model.host_path is not None:
        return _mounted({"hostPath": {"path": model.host_path.path, "type": "Directory"}}, "")
    if model.image is not None:
        image = {"reference": model.image.reference, "pullPolicy": model.image.pull_policy}
        return _mounted({"image": image}, model.image.path)
    assert model.image_path is not None, "the schema wants exactly one source"
    return ModelVolume(model.image_path)


def _mounted(volume: Json, path: str) -> ModelVolume:
    folder = f"{MOUNT}/{path.strip('/')}".rstrip("/")
    mount = {"name": _VOLUME, "mountPath": MOUNT, "readOnly": True}
    return ModelVolume(folder, [{"name": _VOLUME, **volume}], [mount])


def _fetched(source: S3Source | HubSource, args: list[str], env: list[Json], weights: bool) -> ModelVolume:
    # Copies of other sources may share the claim.
    key = source.model_dump_json(exclude={"cache_claim", "size_limit", "secret_name", "token_secret"})
    folder = f"{MOUNT}/{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    volume: Json = {"emptyDir": {"sizeLimit": source.size_limit} if source.size_limit else {}}
    if source.cache_claim:
        volume = {"persistentVolumeClaim": {"claimName": source.cache_claim}}
    mount = {"name": _VOLUME, "mountPath": MOUNT, "readOnly": True}
    # A shared copy must serve workers too, whoever fetches it first.
    leave_out = [] if weights or source.cache_claim else ["--no-weights"]
    args = [*args, "--target", folder, *leave_out]
    return ModelVolume(folder, [{"name": _VOLUME, **volume}], [mount], args, env)


def _s3_args(source: S3Source) -> list[str]:
    args = ["--source", source.uri]
    if source.endpoint:
        args += ["--endpoint", source.endpoint]
    if source.region:
        args += ["--region", source.region]
    return args


def _s3_env(source: S3Source) -> list[Json]:
    if not source.secret_name:
        return []
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return [secret_env(name, source.secret_name, name) for name in names]


def _hub_args(source: HubSource) -> list[str]:
    args = ["--source", f"hub://{source.repo}", "--revision", source.revision]
    return [*args, "--endpoint", source.endpoint] if source.endpoint else args


def _hub_env(source: HubSource) -> list[Json]:
    if source.token_secret is None:
        return []
    return [secret_env("HF_TOKEN", source.token_secret.name, source.token_secret.key)]


def secret_env(name: str, secret: str, key: str) -> dict[str, Any]:
    """An environment variable whose value stays in its Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
