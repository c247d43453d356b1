"""A tiny model folder: tokenizer, chat template and configuration, without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.router.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte-level model named "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder
