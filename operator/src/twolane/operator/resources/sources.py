"""Where a model comes from: the `model` part of a ModelDeployment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twolane.operator.resources.shape import Shape

PullPolicy = Literal["Always", "IfNotPresent", "Never"]
Name = Annotated[str, Field(min_length=1)]
AbsolutePath = Annotated[str, Field(pattern=r"^/.+")]


class SecretKey(Shape):
    """One key of a Secret."""

    name: Name
    key: Name = "HF_TOKEN"


class PvcSource(Shape):
    """A volume claim that holds the model folder."""

    claim_name: Name
    path: str = ""


class HostPathSource(Shape):
    """A folder on every node."""

    path: AbsolutePath


class S3Source(Shape):
    """A folder of an S3-compatible store."""

    uri: Annotated[str, Field(pattern=r"^s3://[^/]+(/.*)?$")]
    endpoint: str = ""
    region: str = ""
    secret_name: str = ""
    cache_claim: str = ""
    size_limit: str = ""


class HubSource(Shape):
    """A repository of a Hugging Face hub."""

    repo: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")]
    revision: Name = "main"
    endpoint: str = ""
    token_secret: SecretKey | None = None
    cache_claim: str = ""
    size_limit: str = ""


class ImageSource(Shape):
    """An OCI image or artifact mounted as a volume."""

    reference: Name
    pull_policy: PullPolicy = "IfNotPresent"
    path: str = ""


class Model(Shape):
    """Which model; the API server has made sure that exactly one source is given."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    pvc: PvcSource | None = None
    host_path: HostPathSource | None = None
    s3: S3Source | None = None
    hub: HubSource | None = None
    image: ImageSource | None = None
    image_path: AbsolutePath | None = None
