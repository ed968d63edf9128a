"""The mirror image of a face: of its points and its camera in a crop, and of its coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mien.camera import Camera
from mien.lighting import sh_basis
from mien.morphable.model import MorphableModel
from mien.typing import Float, Int, Tensor

FLIP = (-1.0, 1.0, 1.0)
LARGEST_REST = 0.01
"""Share of a basis that may lie outside it after mirroring; the packaged model's albedo leaves 0.3 %."""
LARGEST_SHIFT = 1e-4
"""How far the mean face may be from its mirror image anywhere, in metres; and the mean albedo."""


def mirror_mesh(model: MorphableModel) -> Int[Tensor, "468"]:
    """For each of MediaPipe's points the one that takes its place in the mirror, by nearness on the mean face."""
    points = model.mediapipe_points(model.mean[None])[0]
    return torch.cdist(points * points.new_tensor(FLIP), points).argmin(1)


def mirrored_points(
    points_px: Float[Tensor, "*B P 2"], order: Int[Tensor, "P"], *, side: int
) -> Float[Tensor, "*B P 2"]:
    """Points in crops of `side` pixels as a mirror shows them; `order` says which takes whose place."""
    x, y = points_px[..., order, :].unbind(-1)
    return torch.stack([side - x, y], dim=-1)


def mirrored_camera(camera: Camera) -> Camera:
    """The camera of the mirrored picture."""
    x, y = camera.centre_px.unbind(-1)
    return Camera(camera.focal_px, torch.stack([camera.image_size[1] - x, y], dim=-1), camera.image_size)


class Mirror(nn.Module):
    """What a mirror does to the coefficients of a model, and to MediaPipe's points.

    All are buffers: the matrices `identity`, `expression` and `albedo` take the coefficients of a face (as a row) to
    those of its mirror image, `harmonics` (9,) holds each harmonic's sign, and `mesh` is `mirror_mesh`.
    """

    identity: Tensor
    expression: Tensor
    albedo: Tensor
    harmonics: Tensor
    mesh: Tensor

    def __init__(
        self,
        *,
        identity: Float[Tensor, "I I"],
        expression: Float[Tensor, "E E"],
        albedo: Float[Tensor, "A A"],
        mesh: Int[Tensor, "468"],
    ) -> None:
        super().__init__()
        ray = torch.tensor([[0.36, 0.48, 0.80]])  # in which no harmonic is 0
        signs = (sh_basis(ray * torch.tensor(FLIP)) / sh_basis(ray))[0].round().to(identity)
        buffers = {"identity": identity, "expression": expression, "albedo": albedo, "harmonics": signs, "mesh": mesh}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def of(cls, model: MorphableModel) -> Mirror | None:
        """A model's mirror; None where mirror images of its faces are not all faces of the model.

        Those of a statistical model of scans are not; those of a model that was made symmetric are.
        """
        flip = model.mean.new_tensor(FLIP)
        means = ((model.mean, model.mean[model.mirror] * flip), (model.albedo_mean, model.albedo_mean[model.mirror]))
        if any((mean - image).abs().max() > LARGEST_SHIFT for mean, image in means):
            return None
        identity = _within(model.identity_basis, model.identity_basis[:, model.mirror] * flip)
        image = model.expression_basis[:, model.mirror] * flip
        if model.expression_kind == "strength":
            twins = _twins(model.expression_names).to(image)
            expression = twins if _near(_combined(twins, model.expression_basis), image) else None
        else:
            expression = _within(model.expression_basis, image)
        albedo = _within(model.albedo_basis, model.albedo_basis[:, model.mirror])
        if identity is None or expression is None or albedo is None:
            return None
        return cls(identity=identity, expression=expression, albedo=albedo, mesh=mirror_mesh(model))


def _within(basis: Float[Tensor, "K V C"], image: Float[Tensor, "K V C"]) -> Float[Tensor, "K K"] | None:
    """The coefficients in a basis of each of its mirrored vectors; None where they lie outside it."""
    flat = basis.flatten(1).double()
    inverse = torch.linalg.pinv(flat @ flat.mT, hermitian=True)  # a converted model may have modes of zeros
    found = (image.flatten(1).double() @ flat.mT @ inverse).to(basis)
    return found if _near(_combined(found, basis), image) else None


def _combined(weights: Float[Tensor, "N K"], basis: Float[Tensor, "K V C"]) -> Float[Tensor, "N V C"]:
    return (weights @ basis.flatten(1)).unflatten(1, basis.shape[1:])


def _near(found: Float[Tensor, "K V C"], right: Float[Tensor, "K V C"]) -> bool:
    return float((found - right).norm()) <= LARGEST_REST * float(right.norm())


def _twins(names: Sequence[str]) -> Float[Tensor, "E E"]:
    """Exchanges the left and the right one of each pair of expressions."""
    turned = [name.replace("Left", "*").replace("Right", "Left").replace("*", "Right") for name in names]
    places = [names.index(name) if name in names else k for k, name in enumerate(turned)]
    return torch.eye(len(names))[places]
