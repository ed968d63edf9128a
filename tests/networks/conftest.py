from __future__ import annotations

import pytest
import torch

from mien.morphable import MorphableModel, load_model
from mien.networks import FaceEncoder
from tests.tiny_encoder import SIZE, randomized


@pytest.fixture
def encoder(tiny: MorphableModel) -> FaceEncoder:
    return FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE).eval()


@pytest.fixture
def trained(encoder: FaceEncoder) -> FaceEncoder:
    return randomized(encoder)


@pytest.fixture
def pointed(tiny: MorphableModel) -> FaceEncoder:
    return randomized(FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True))


@pytest.fixture
def refining(tiny: MorphableModel) -> FaceEncoder:
    encoder = FaceEncoder("efficientnet_lite0", tiny, image_size=SIZE, points=True, refiner=True)
    assert encoder.refiner is not None
    torch.nn.init.normal_(encoder.refiner.head.weight, std=0.01)
    return randomized(encoder)


@pytest.fixture
def from_landmarks() -> FaceEncoder:
    """With the packaged model, which is symmetric."""
    encoder = FaceEncoder(
        "efficientnet_lite0", load_model(), image_size=SIZE, points=True, refiner=True, refine_from="landmarks"
    )
    assert encoder.refiner is not None
    torch.nn.init.normal_(encoder.refiner.head.weight, std=0.01)
    return randomized(encoder)
