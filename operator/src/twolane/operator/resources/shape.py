"""How every part of a custom resource is read: camelCase outside, snake_case inside, nothing unknown."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

Json = dict[str, Any]
"""An object as the API server sends it."""


class Shape(BaseModel):
    """A part of a custom resource; what the schema defaults, it defaults alike."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True
    )
