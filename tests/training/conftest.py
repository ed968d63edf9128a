"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_model
from tests.training.tiny_data import write_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_model(), tmp_path_factory.mktemp("model") / "tiny.safetensors")
