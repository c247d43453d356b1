"""Certificates and what can't go with them are judged before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from twolane.core.errors import ConfigError
from twolane.worker.config import WorkerConfig
from twolane.worker.main import serve


def test_nixl_and_certificates_exclude_each_other(tmp_path: Path) -> None:
    """It would send in the open what the rest protects."""
    flags = ["--model-dir", str(tmp_path), "--nixl", "--tls-dir", str(tmp_path)]
    with pytest.raises(ConfigError, match="--nixl sends pages in the open, which --tls-dir forbids"):
        WorkerConfig.from_args(flags)


async def test_missing_certificates_show_before_the_model_is_loaded(tmp_path: Path) -> None:
    """Not minutes later: the model of this test can't even be loaded."""
    config = WorkerConfig(model_dir=tmp_path / "no-model", tls_dir=tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"can't read .*tls\.crt"):
        await serve(config)
