from __future__ import annotations

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import pytest
import torch

from mien.morphable import MorphableModel
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> MorphableModel:
    return tiny_model()
