from __future__ import annotations

import mien  # noqa: F401, I001  (before torch, as its users import it: see mien.threads)

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
