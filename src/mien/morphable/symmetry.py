"""The mirror image of a face: its points, its camera and its coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mien.camera import Camera
from mien.lighting import sh_basis
from mien.morphable.model import MorphableModel
from mien.typing import Float, Int, Tensor

FLIP = (-1.0, 1.0, 1.0)
"""Factors of x, y, z that mirror a point of the model: x runs from the subject's right to the left."""
LARGEST_REST = 0.01
"""Largest share of a mirrored basis that may lie outside the basis; for the packaged model's albedo it is 0.3 %."""
LARGEST_SHIFT = 1e-4
"""Largest distance of the mean face from its mirror image at any vertex, metres; also of the mean albedo, 0 to 1."""


def mirror_mesh(model: MorphableModel) -> Int[Tensor, "468"]:
    """For each of MediaPipe's points, the point that takes its place in the mirror image.

    Args:
        model: The model whose mean face decides: it is the point nearest to the mirrored position.
    """
    points = model.mediapipe_points(model.mean[None])[0]
    return torch.cdist(points * points.new_tensor(FLIP), points).argmin(1)


def mirrored_points(
    points_px: Float[Tensor, "*B P 2"], order: Int[Tensor, "P"], *, side: int
) -> Float[Tensor, "*B P 2"]:
    """Points of faces in mirrored crops.

    Args:
        points_px: Points in crop pixels.
        order: For each point, the point that takes its place: `IBUG_MIRROR` or `mirror_mesh`.
        side: Side of the crops, pixels.

    Returns:
        The points in pixels of the mirrored crop, differentiable.
    """
    x, y = points_px[..., order, :].unbind(-1)
    return torch.stack([side - x, y], dim=-1)


def mirrored_camera(camera: Camera) -> Camera:
    """The camera of the mirrored picture.

    Its principal point is mirrored across the picture's width: a crop is rarely cut around the principal point, so it
    is not in the middle.
    """
    x, y = camera.centre_px.unbind(-1)
    return Camera(camera.focal_px, torch.stack([camera.image_size[1] - x, y], dim=-1), camera.image_size)


class Mirror(nn.Module):
    """Maps the coefficients of faces, and MediaPipe's points, to those of their mirror images.

    All arrays are buffers. Coefficients are rows: `mirrored = coefficients @ identity`.
    """

    identity: Tensor
    """(I, I)"""
    expression: Tensor
    """(E, E)"""
    albedo: Tensor
    """(A, A)"""
    harmonics: Tensor
    """(9,) sign of each spherical harmonic under mirroring."""
    mesh: Tensor
    """(468,) `mirror_mesh` of the model."""

    def __init__(
        self,
        *,
        identity: Float[Tensor, "I I"],
        expression: Float[Tensor, "E E"],
        albedo: Float[Tensor, "A A"],
        mesh: Int[Tensor, "468"],
    ) -> None:
        super().__init__()
        ray = torch.tensor([[0.36, 0.48, 0.80]])  # a direction in which no harmonic is 0
        signs = (sh_basis(ray * torch.tensor(FLIP)) / sh_basis(ray))[0].round().to(identity)
        buffers = {"identity": identity, "expression": expression, "albedo": albedo, "harmonics": signs, "mesh": mesh}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def of(cls, model: MorphableModel) -> Mirror | None:
        """The mirror map of a model, or None if the model cannot represent the mirror images of its faces.

        A model that was made symmetric can; a statistical model of scans cannot.
        """
        flip = model.mean.new_tensor(FLIP)
        means = ((model.mean, model.mean[model.mirror] * flip), (model.albedo_mean, model.albedo_mean[model.mirror]))
        if any((mean - image).abs().max() > LARGEST_SHIFT for mean, image in means):
            return None
        identity = _within(model.identity_basis, model.identity_basis[:, model.mirror] * flip)
        image = model.expression_basis[:, model.mirror] * flip
        if model.expression_kind == "strength":
            swap = _left_right_swap(model.expression_names).to(image)
            expression = swap if _near(_combined(swap, model.expression_basis), image) else None
        else:
            expression = _within(model.expression_basis, image)
        albedo = _within(model.albedo_basis, model.albedo_basis[:, model.mirror])
        if identity is None or expression is None or albedo is None:
            return None
        return cls(identity=identity, expression=expression, albedo=albedo, mesh=mirror_mesh(model))


def _within(basis: Float[Tensor, "K V C"], image: Float[Tensor, "K V C"]) -> Float[Tensor, "K K"] | None:
    """Coefficients that reproduce each mirrored vector in the basis; None if some vector lies outside the basis."""
    flat = basis.flatten(1).double()
    inverse = torch.linalg.pinv(flat @ flat.mT, hermitian=True)  # a converted model may have modes of zeros
    found = (image.flatten(1).double() @ flat.mT @ inverse).to(basis)
    return found if _near(_combined(found, basis), image) else None


def _combined(weights: Float[Tensor, "N K"], basis: Float[Tensor, "K V C"]) -> Float[Tensor, "N V C"]:
    return (weights @ basis.flatten(1)).unflatten(1, basis.shape[1:])


def _near(found: Float[Tensor, "K V C"], expected: Float[Tensor, "K V C"]) -> bool:
    return float((found - expected).norm()) <= LARGEST_REST * float(expected.norm())


def _left_right_swap(names: Sequence[str]) -> Float[Tensor, "E E"]:
    """Permutation matrix that exchanges `…Left` and `…Right` of each pair of expressions."""
    turned = [name.replace("Left", "*").replace("Right", "Left").replace("*", "Right") for name in names]
    places = [names.index(name) if name in names else k for k, name in enumerate(turned)]
    return torch.eye(len(names))[places]
