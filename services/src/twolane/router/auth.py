"""Who may ask: API keys, compared in constant time and never kept or logged in the clear.

Without configured keys everyone may. REST passes the Authorization header, gRPC the metadata of the
same name. A file of keys is read again when it changes: a key is given or taken without a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from pathlib import Path

from twolane.core.errors import ConfigError, Unauthenticated

log = logging.getLogger(__name__)

REFRESH_S = 10.0
"""How often the file is looked at."""


class ApiKeys:
    """The known keys, as digests."""

    def __init__(self, listed: list[str], file: Path | None = None) -> None:
        """`listed`: keys that stay; `file`: one with further keys.

        Raises:
            ConfigError: the file can't be read or holds no key.
        """
        self._listed = listed
        self._file = file
        self._stamp = _stamp(file)
        self._digests = self._read()

    async def follow(self) -> None:
        """Looks at the file again and again, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            self.refresh()

    def refresh(self) -> None:
        """Reads the file again if it has changed; a file that can't be read or is empty changes nothing."""
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._digests = self._read()
        except ConfigError as error:
            log.error("API keys not read again; the old ones hold: %s", error.message)
            return
        self._stamp = stamp
        log.info("API keys read again", extra={"keys": len(self._digests)})

    def _read(self) -> list[bytes]:
        found = [] if self._file is None else _keys_of(self._file)
        return [_digest(key) for key in [*self._listed, *found]]

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
    return ApiKeys([key.strip() for key in listed.split(",") if key.strip()], file)


def _keys_of(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {file} can't be read: {type(error).__name__}") from None
    found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not found:
        raise ConfigError(f"api_keys_file {file} holds no key; leave the setting out to let everyone in")
    return found


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """Differs when the file was written, or a link to it leads to another one; None without a file."""
    try:
        state = file.stat() if file is not None else None
    except OSError:
        return None
    return (state.st_ino, state.st_mtime_ns, state.st_size) if state is not None else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
