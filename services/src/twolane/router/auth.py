"""Who may ask: API keys, compared in constant time and never kept or logged in the clear.

Without configured keys everyone may. REST passes the Authorization header, gRPC the metadata of the
same name.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from twolane.core.errors import ConfigError, Unauthenticated


class ApiKeys:
    """The known keys, as digests."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def required(self) -> bool:
        """Whether calls must carry a key."""
        return bool(self._digests)

    def check(self, authorization: str) -> None:
        """Raises Unauthenticated unless the header "Bearer <key>" holds a known key."""
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("no API key: send it as 'Authorization: Bearer <key>'")
        given = _digest(key.strip())
        # Every digest is compared, so that the time tells nothing of which one matched.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated("the API key is not known")


def read_api_keys(listed: str, file: Path | None) -> ApiKeys:
    """Keys from a comma-separated list and from a file with one per line ('#' begins a comment).

    Raises:
        ConfigError: the file can't be read or holds no key.
    """
    keys = [key.strip() for key in listed.split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file {file} can't be read: {type(error).__name__}") from None
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found:
            raise ConfigError(f"api_keys_file {file} holds no key; leave the setting out to let everyone in")
        keys += found
    return ApiKeys(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
