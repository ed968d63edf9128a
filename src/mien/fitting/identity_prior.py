"""Prior of the identity: how people spread in the components of the packaged model.

The components are standard deviations of the population that the model was built from. Real people spread less along
some of them, and along some of them together. The packaged covariance is that of the identities of ICT-FaceKit, mixed
with the model's own (`models/identity_prior.py`).
"""

from __future__ import annotations

import functools

import torch

from mien.assets import load_metadata, load_tensors
from mien.morphable import MorphableModel
from mien.morphable.revisions import is_made_for
from mien.typing import Float, Tensor

IDENTITY_PRIOR_FILE = "identity-prior.safetensors"
FORMAT = "mien-identity-prior-1"


def identity_precision(model: MorphableModel, *, sigma: float) -> Float[Tensor, "I I"]:
    """Inverse covariance of the identity coefficients.

    Args:
        model: The morphable model. The packaged covariance belongs to the packaged model; other models have
            independent coefficients.
        sigma: Factor of all standard deviations.

    Returns:
        A symmetric, positive definite matrix in type and place of the model.

    Raises:
        AssetError: The packaged covariance is missing or damaged.
    """
    model_hash, precision = _packaged_precision()
    if not is_made_for(model_hash, model.fingerprint):
        precision = torch.eye(model.counts[0], dtype=torch.float64)
    return (precision / sigma**2).to(model.mean)


@functools.lru_cache(maxsize=1)
def _packaged_precision() -> tuple[str, Float[Tensor, "I I"]]:
    """Fingerprint of the model, and the inverse covariance of its coefficients in double precision."""
    covariance = load_tensors(IDENTITY_PRIOR_FILE)["covariance"].double()
    precision = torch.linalg.inv(covariance)
    return load_metadata(IDENTITY_PRIOR_FILE)["model_hash"], (precision + precision.mT) / 2
