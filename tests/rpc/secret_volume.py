"""Certificates as tests need them, in folders as a kubelet keeps a Secret: exchanged in one step."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twolane.rpc.identity import Component, dns_name
from twolane.rpc.issuing import KeyPair, issue, make_authority, write_folder

DEPLOYMENT = "demo.team.svc"
HOUR = timedelta(hours=1)


def authority(deployment: str = DEPLOYMENT) -> KeyPair:
    """A new authority."""
    return make_authority(deployment, datetime.now(UTC), 24 * HOUR)


def certificate(
    signer: KeyPair,
    component: Component = "worker",
    deployment: str = DEPLOYMENT,
    *,
    age: timedelta = HOUR * 0,
) -> KeyPair:
    """A certificate that lasts an hour; of an older `age` it may have expired."""
    return issue(signer, [dns_name(component, deployment)], datetime.now(UTC) - age, HOUR)


class SecretVolume:
    """A mounted Secret.

    Attributes:
        folder: what `--tls-dir` is given.
    """

    def __init__(self, folder: Path, pair: KeyPair, trusted: Sequence[KeyPair]) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        folder.mkdir(parents=True)
        self.exchange(pair, trusted)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (folder / name).symlink_to(Path("..data") / name)

    def exchange(self, pair: KeyPair, trusted: Sequence[KeyPair]) -> None:
        """What the kubelet does after a Secret has changed; the old files go away."""
        place = f"..generation-{next(self._numbers)}"
        write_folder(self.folder / place, pair, b"".join(each.certificate for each in trusted))
        data, new = self.folder / "..data", self.folder / "..data_tmp"
        old = data.resolve() if data.exists() else None
        new.symlink_to(place)
        os.replace(new, data)
        if old is not None:
            shutil.rmtree(old)
