"""The mirror image of a face: of its points, and of what is true of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mien.arrays import Float, Int, Tensor
from mien.camera import Camera
from mien.encoder import Regression
from mien.lighting import sh_basis
from mien.morphable import MorphableModel
from mien.training.batch import FaceBatch

MIRROR_LANDMARKS = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,
    64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
"""For each of the 68 points the one that takes its place in the mirror."""
FLIP = (-1.0, 1.0, 1.0)
LARGEST_REST = 0.01
"""Share of a basis that may lie outside it after mirroring; the packaged model's albedo leaves 0.3 %."""


def mirror_mesh(model: MorphableModel) -> Int[Tensor, "468"]:
    """For each of MediaPipe's points the one that takes its place in the mirror, by nearness on the mean face."""
    points = model.mediapipe_points(model.mean[None])[0]
    return torch.cdist(points * points.new_tensor(FLIP), points).argmin(1)


@dataclass(frozen=True)
class Mirror:
    """Mirrors faces of a model with their truth."""

    identity: Float[Tensor, "I I"]
    """Takes the coefficients of a face to those of its mirror image; so for the other groups."""
    expression: Float[Tensor, "E E"]
    albedo: Float[Tensor, "A A"]
    harmonics: Float[Tensor, "9"]
    """Sign of each harmonic in the mirror."""
    mesh: Int[Tensor, "468"]
    landmarks: Int[Tensor, "68"]

    @classmethod
    def of(cls, model: MorphableModel) -> Mirror | None:
        """A model's mirror; None where mirror images of its faces are not all faces of the model.

        Those of a statistical model of scans are not; those of a model that was made symmetric are.
        """
        flip = model.mean.new_tensor(FLIP)
        identity = _within(model.identity_basis, model.identity_basis[:, model.mirror] * flip)
        if model.expression_kind == "strength":
            expression = _twins(model.expression_names)
            image = model.expression_basis[:, model.mirror] * flip
            if not _near(torch.einsum("ij,jvc->ivc", expression, model.expression_basis), image):
                expression = None
        else:
            expression = _within(model.expression_basis, model.expression_basis[:, model.mirror] * flip)
        albedo = _within(model.albedo_basis, model.albedo_basis[:, model.mirror])
        if identity is None or expression is None or albedo is None:
            return None
        ray = torch.tensor([[0.36, 0.48, 0.80]])  # in which no harmonic is 0
        harmonics = (sh_basis(ray * flip) / sh_basis(ray))[0].round()
        return cls(identity, expression, albedo, harmonics, mirror_mesh(model), torch.tensor(MIRROR_LANDMARKS))

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Drawn faces as a mirror shows them."""
        if batch.truth is None:
            raise TypeError("drawn faces come with their truth")
        side = float(batch.images.shape[-1])
        turn, shift = torch.tensor([-1.0, 1.0]), torch.tensor([side, 0.0])
        return replace(
            batch,
            images=batch.images.flip(-1),
            mask=batch.mask.flip(-1),
            camera=Camera(batch.camera.focal_px, batch.camera.centre_px * turn + shift, batch.camera.image_size),
            landmarks68_px=batch.landmarks68_px[:, self.landmarks] * turn + shift,
            mesh_px=batch.mesh_px[:, self.mesh] * turn + shift,
            found_px=batch.found_px[:, self.mesh] * turn + shift,
            truth=self._truth(batch.truth),
        )

    def _truth(self, truth: Regression) -> Regression:
        light = truth.lighting.unflatten(1, (-1, 3)) * self.harmonics[:, None]
        return replace(
            truth,
            identity=truth.identity @ self.identity,
            expression=truth.expression @ self.expression,
            albedo=truth.albedo @ self.albedo,
            lighting=light.flatten(1),
            rotation=truth.rotation * torch.tensor([1.0, -1.0, -1.0]),
            translation=truth.translation * torch.tensor([-1.0, 1.0]),
        )


def _within(basis: Float[Tensor, "K V C"], image: Float[Tensor, "K V C"]) -> Float[Tensor, "K K"] | None:
    """The coefficients in a basis of each of its mirrored vectors; None where they lie outside it."""
    wide, right = basis.flatten(1).mT.double(), image.flatten(1).mT.double()
    found = torch.linalg.lstsq(wide, right).solution.mT.to(basis)
    return found if _near(torch.einsum("ij,jvc->ivc", found, basis), image) else None


def _near(found: Float[Tensor, "K V C"], right: Float[Tensor, "K V C"]) -> bool:
    return float((found - right).norm()) <= LARGEST_REST * float(right.norm())


def _twins(names: Sequence[str]) -> Float[Tensor, "E E"]:
    """Exchanges the left and the right one of each pair of expressions."""
    turned = [name.replace("Left", "*").replace("Right", "Left").replace("*", "Right") for name in names]
    places = [names.index(name) if name in names else k for k, name in enumerate(turned)]
    return torch.eye(len(names))[places]
