"""How people spread in the identity components of `mien-face`, from the population of ICT-FaceKit (MIT).

    python models/identity_prior.py path/to/ict_facekit.npz

writes `src/mien/assets/identity-prior.safetensors`: the covariance of the identity coefficients, which the fit uses as
its prior (`mien.fitting.identity_prior`). Identities of ICT-FaceKit are a_i ~ N(0, 1), so each of its 100 modes is the
offset of one standard deviation. The model's mean is registered to ICT-FaceKit's; where the two surfaces agree, the
offset of every mode is read off ICT-FaceKit's surface and fitted with the model's identity components, without rigid
motion. The model was made from more sources than ICT-FaceKit, so the covariance is mixed with the model's own, the
identity matrix. Deterministic.

Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020 (arXiv 2004.03458).
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ict_landmarks import FACE_VERTICES, MM_PER_UNIT, rigid_motions
from record_asset import ASSETS, save_asset

from mien.fitting.identity_prior import FORMAT, IDENTITY_PRIOR_FILE
from mien.geometry import align_points, vertex_normals
from mien.morphable import MorphableModel, load_model
from mien.registration import register

LICENCE = "MIT"
SOURCE = (
    "covariance of the identities of ICT-FaceKit (ICT Face Model Light), https://github.com/ICT-VGL/ICT-FaceKit, "
    "Copyright (c) 2020 USC Institute for Creative Technologies, fitted with the identity components of "
    "mien-face.safetensors"
)
REACH_MM = 1.5
"""Vertices of the registered model that lie farther from ICT-FaceKit's surface are left out."""
RIDGE_MM_SQ = 0.01
"""Squared error per vertex that a coefficient of one costs: without it, components that cancel each other out reproduce
detail of ICT-FaceKit that the model does not have."""
SHARE = 0.8
"""Share of ICT-FaceKit in the covariance; the rest is the model's own."""
MM_PER_M = 1000.0


@dataclass(frozen=True)
class Population:
    """The mean face of ICT-FaceKit and its modes."""

    mean: torch.Tensor
    """(V, 3) metres"""
    triangles: torch.Tensor
    """(T, 3)"""
    modes: torch.Tensor
    """(M, V, 3) offset of one standard deviation, millimetres"""
    landmarks68: dict[int, int]
    """Vertex by iBUG index."""


def read_population(path: Path) -> Population:
    """The skin of ICT-FaceKit."""
    with np.load(path, allow_pickle=False) as pack:
        triangles = torch.from_numpy(pack["triangles"]).long()
        return Population(
            torch.from_numpy(pack["vertices"][:FACE_VERTICES] * (MM_PER_UNIT / MM_PER_M)).float(),
            triangles[(triangles < FACE_VERTICES).all(1)],
            torch.from_numpy(pack["identity_deltas"][:, :FACE_VERTICES] * MM_PER_UNIT).double(),
            dict(enumerate(pack["landmarks68"].tolist())),
        )


def modes_on_model(model: MorphableModel, population: Population) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (N,) of the model that lie on the population's mean, and its modes (M, N, 3) there, in model axes."""
    found = register(model, population.mean, population.triangles, population.landmarks68)
    normals = vertex_normals(found.vertices[None], model.triangles)[0]
    matches = found.onto_target(found.vertices, normals)
    parts = model.masks
    skin = (parts.skin > 0.5) & (parts.eyes < 0.5) & (parts.mouth < 0.5)
    used = skin & ~matches.at_border & (matches.distances * MM_PER_M < REACH_MM)
    corners, weights = matches.corners[used], matches.weights[used].double()
    modes = (population.modes[:, corners] * weights[..., None]).sum(2)
    # The same pose, but ICT-FaceKit's own size: people differ in size, and the modes contain it.
    pose = align_points(model.mean[None, used].double(), found.vertices[None, used].double(), rigid=True)
    return used.nonzero()[:, 0], modes @ pose.rotation[0]


def without_motion(fields: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Offsets (K, N, 3) of points (N, 3) without small rotations and translations, as rows (K, 3 N)."""
    motions = torch.from_numpy(rigid_motions(points.numpy()))
    flat = fields.flatten(1)
    return flat - (flat @ motions) @ motions.T


def coefficients_of(offsets: torch.Tensor, basis: torch.Tensor, ridge: float) -> torch.Tensor:
    """Least-squares coefficients (M, I) of offsets (M, 3 N) in a basis (I, 3 N).

    Args:
        offsets: Offsets of N points.
        basis: Components at the same points.
        ridge: Squared error per point that a coefficient of one costs.
    """
    count = basis.shape[1] / 3
    matrix = basis @ basis.T / count + ridge * torch.eye(len(basis), dtype=basis.dtype)
    return torch.linalg.solve(matrix, basis @ offsets.T / count).T


def mixed_covariance(coefficients: torch.Tensor) -> torch.Tensor:
    """Covariance (I, I) of people whose independent modes have the coefficients (M, I), mixed with the model's own."""
    own = torch.eye(coefficients.shape[1], dtype=coefficients.dtype)
    return SHARE * coefficients.T @ coefficients + (1 - SHARE) * own


def spread(covariance: torch.Tensor, basis: torch.Tensor) -> float:
    """Standard deviation of a point: the root of its variance, summed over the axes and averaged over the points."""
    return float(3 * ((covariance @ basis) * basis).sum(0).mean()) ** 0.5


def build(model: MorphableModel, population: Population) -> tuple[torch.Tensor, str]:
    """The covariance (I, I), and the figures to print."""
    used, modes = modes_on_model(model, population)
    points = model.mean[used].double() * MM_PER_M
    offsets = without_motion(modes, points)
    basis = without_motion(model.identity_basis[:, used].double() * MM_PER_M, points)
    coefficients = coefficients_of(offsets, basis, RIDGE_MM_SQ)
    covariance = mixed_covariance(coefficients)
    each_mode, own = (torch.eye(count, dtype=basis.dtype) for count in (len(modes), len(basis)))
    figures = [
        f"{len(used)} of {len(model.mean)} vertices; standard deviation of a vertex in mm, without rigid motion:",
        f"ICT-FaceKit {spread(each_mode, offsets):.3f}",
        f"of which not explained {spread(each_mode, offsets - coefficients @ basis):.3f}",
        f"mien-face, standard normal {spread(own, basis):.3f}",
        f"mien-face, this covariance {spread(covariance, basis):.3f}",
    ]
    return covariance, "\n".join(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pack", type=Path, help="ict_facekit.npz")
    pack = parser.parse_args().pack
    model = load_model()
    covariance, figures = build(model, read_population(pack))
    metadata = {
        "format": FORMAT,
        "model_hash": model.fingerprint,
        "source_sha256": hashlib.sha256(pack.read_bytes()).hexdigest(),
        "share": str(SHARE),
        "ridge_mm_sq": str(RIDGE_MM_SQ),
        "reach_mm": str(REACH_MM),
    }
    save_asset(IDENTITY_PRIOR_FILE, {"covariance": covariance.float()}, metadata, licence=LICENCE, source=SOURCE)
    print(figures)
    print(f"{IDENTITY_PRIOR_FILE}: {hashlib.sha256((ASSETS / IDENTITY_PRIOR_FILE).read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
