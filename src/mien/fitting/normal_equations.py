"""Gauss-Newton's normal equations of the photometric energy, without the recognition term.

Colours are those of a sample of the pixels that show skin. A pixel shows a point of the surface; when the face changes,
the point moves over the photo and turns in the light. The derivative of its colour error is therefore minus the
gradient of the photo times the motion, plus the change of shading and albedo. No derivative of the rasterizer is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mien.camera import CAMERA_FROM_MODEL
from mien.fitting.contour import contour_errors
from mien.fitting.lighting import expected_light
from mien.fitting.photometric import EFFECTIVE_PIXELS, PhotometricEnergy
from mien.fitting.problem import COLOUR_ROBUST_SCALE_SQ, ROBUST_SCALE_SQ, FitSettings
from mien.fitting.unknowns import PoseDerivatives, Unknowns
from mien.lighting import sh_basis, shading_gradient
from mien.losses import geman_mcclure_weights
from mien.morphable import FaceCoefficients, MorphableModel
from mien.morphable.per_model import per_model
from mien.rasterizer.cpu import native
from mien.rendering import RenderOutput
from mien.typing import Float, Int, Tensor

PIXELS = 2000
"""Number of sampled pixels per face. Each shows three channels; there are 285 unknowns."""
GOLDEN = 0.382
"""Shift of a row of the lattice of sampled pixels, as a share of its spacing: the golden section spreads it evenly."""
POSE_PRECISION = 1e-3
"""Weak prior of the pose, so that the equations have a solution without any pixel."""


class ShapeBasis:
    """The bases of a model, arranged per vertex for products with one face's derivatives.

    Args:
        model: The morphable model.
        expression_sigmas: Expression coefficients per unit of their unknowns.
    """

    def __init__(self, model: MorphableModel, *, expression_sigmas: Float[Tensor, "E"]) -> None:
        bases = torch.cat([model.identity_basis, model.expression_basis * expression_sigmas[:, None, None]])
        self.vertices = bases.permute(1, 2, 0).contiguous()  # V 3 K
        self.albedo = model.albedo_basis.permute(1, 2, 0).contiguous()  # V 3 A
        corners, weights = model.mediapipe_vertices, model.mediapipe_barycentrics
        self.points = (self.vertices[corners] * weights[..., None, None]).sum(1)  # 468 3 K

    @classmethod
    def of(cls, model: MorphableModel, settings: FitSettings) -> ShapeBasis:
        """The bases of a model in the unknowns of a fit, computed once per model.

        Args:
            model: The morphable model.
            settings: Standard deviations of the expressions.
        """
        return per_model(model, _shape_basis, settings.expression_sigma)


def _shape_basis(model: MorphableModel, expression_sigma: float) -> ShapeBasis:
    sigmas = FitSettings(expression_sigma=expression_sigma).expression_sigmas(model)
    return ShapeBasis(model, expression_sigmas=sigmas)


@dataclass(frozen=True)
class NormalEquations:
    """The quadratic approximation of the energy of one face: its second and first derivative by the unknowns."""

    hessian: Float[Tensor, "N N"]
    """Gauss-Newton's approximation of the second derivative, positive definite."""
    gradient: Float[Tensor, "N"]
    """First derivative. That of the colours is the derivative of the sampled pixels."""

    def add(self, jacobian: Float[Tensor, "R M"], errors: Float[Tensor, "R"], weights: Float[Tensor, "R"]) -> None:
        """Add ½ Σ weight · error², in place.

        Args:
            jacobian: Derivative of the errors by the first M unknowns.
            errors: The errors.
            weights: Inverse variances.
        """
        count = jacobian.shape[1]
        weighted = jacobian * weights[:, None]
        self.hessian[:count, :count] += weighted.T @ jacobian
        self.gradient[:count] += weighted.T @ errors


@torch.no_grad()
def normal_equations(
    energy: PhotometricEnergy, basis: ShapeBasis, unknowns: Unknowns, rendered: RenderOutput
) -> NormalEquations:
    """Linearise the energy of one face at its unknowns.

    Args:
        energy: Energy of a batch of one face.
        basis: Bases of the energy's model.
        unknowns: The face.
        rendered: Its rendering.
    """
    equations = photo_equations(energy, basis, unknowns, rendered)
    _add_person_priors(equations, energy, unknowns)
    return equations


@torch.no_grad()
def photo_equations(
    energy: PhotometricEnergy, basis: ShapeBasis, unknowns: Unknowns, rendered: RenderOutput
) -> NormalEquations:
    """Linearise what one photo says: the energy without the terms of `EnergyTerms.person`.

    Args:
        energy: Energy of a batch of one face.
        basis: Bases of the energy's model.
        unknowns: The face.
        rendered: Its rendering.
    """
    count = sum(parameter.numel() for parameter in unknowns.parameters())
    zeros = rendered.image.new_zeros
    equations = NormalEquations(zeros(count, count), zeros(count))
    face = _Face(energy, basis, unknowns, rendered)
    _add_colours(equations, face)
    _add_points(equations, face)
    _add_contour(equations, face)
    _add_photo_priors(equations, face)
    return equations


class _Face:
    """One face with what all terms need of it; tensors without the dimension of the batch."""

    def __init__(
        self, energy: PhotometricEnergy, basis: ShapeBasis, unknowns: Unknowns, rendered: RenderOutput
    ) -> None:
        self.energy, self.model, self.targets, self.settings = energy, energy.model, energy.targets, energy.settings
        self.basis, self.unknowns, self.rendered = basis, unknowns, rendered
        self.coefficients: FaceCoefficients = unknowns.coefficients()
        surface = rendered.surface
        self.vertices, self.vertices_camera = surface.vertices[0], surface.vertices_camera[0]
        self.normals, self.albedo, self.shading = surface.normals[0], surface.albedo[0], surface.shading[0]
        self.pose: PoseDerivatives = unknowns.pose_derivatives()
        self.to_view = self.coefficients.pose.rotmat()[0] * self.coefficients.pose.scale[0]
        self.to_camera = self.vertices.new_tensor(CAMERA_FROM_MODEL)[:, None] * self.to_view
        self.extent_px = self.targets.extent_px[0]

    def projection(self, points_camera: Float[Tensor, "P 3"]) -> Float[Tensor, "P 2 3"]:
        """Derivative of pixel positions by the points."""
        focal = self.targets.camera.focal_px[0]
        x, y, z = points_camera.unbind(-1)
        zero = torch.zeros_like(z)
        rows = [focal / z, zero, -focal * x / z**2, zero, focal / z, -focal * y / z**2]
        return torch.stack(rows, dim=-1).view(-1, 2, 3)

    def by_geometry(
        self, by_camera: Float[Tensor, "P R 3"], basis: Float[Tensor, "P 3 K"], points: Float[Tensor, "P 3"]
    ) -> Float[Tensor, "P R K+6"]:
        """Derivative of R values per surface point by the unknowns of shape and pose.

        Args:
            by_camera: Derivative of the values by the point in camera space.
            basis: Bases at the points.
            points: Model space.
        """
        by_pose = by_camera @ self.pose.of_points(points @ self.to_view.T)
        return torch.cat([torch.bmm(by_camera @ self.to_camera, basis), by_pose], dim=-1)


@dataclass(frozen=True)
class _Pixels:
    """N sampled pixels and the surface points that they show."""

    index: Int[Tensor, "N"]
    """Number of the pixel in the flattened crop."""
    corners: Int[Tensor, "N 3"]
    """Vertices of the triangle."""
    barycentrics: Float[Tensor, "N 3"]
    """Position in it."""
    counts: Float[Tensor, "N"]
    """Number of independent colour errors that each of them counts as."""

    def at(self, image: Float[Tensor, "C H W"]) -> Float[Tensor, "N C"]:
        """Values of an image at the pixels."""
        return image.flatten(1)[:, self.index].T

    def between(self, values: Float[Tensor, "V C"]) -> Float[Tensor, "N C"]:
        """Values per vertex, interpolated."""
        return (values[self.corners] * self.barycentrics[..., None]).sum(1)


def _sampled_pixels(face: _Face) -> _Pixels:
    """Pixels of a lattice that depends on the size of the mask alone.

    A sample that follows the weights of the pixels would change with the last bit of the photo, and the fit with it.
    """
    ids, weights = face.rendered.triangle_ids[0], face.energy.pixel_weights(face.rendered)[0]
    spacing = max(1, round(float(face.targets.mask.sum()) / PIXELS))
    rows, columns = (torch.arange(side, device=ids.device) for side in ids.shape)
    on_lattice = (columns + round(GOLDEN * spacing) * rows[:, None]) % spacing == 0
    chosen = on_lattice & (ids >= 0) & (weights > 0)
    index = chosen.flatten().nonzero()[:, 0]
    shares = weights.flatten()[index]
    # A few pixels are no sample: the weight of the energy's own mean is bounded in the same way.
    counts = EFFECTIVE_PIXELS * shares / shares.sum().clamp(min=1)
    return _Pixels(
        index,
        face.model.triangles[ids.flatten()[index].long()],
        face.rendered.barycentrics[0].flatten(0, 1)[index],
        counts,
    )


def _add_colours(equations: NormalEquations, face: _Face) -> None:
    pixels, settings = _sampled_pixels(face), face.settings
    errors = pixels.at(face.rendered.image[0] - face.targets.crops[0])
    squared = errors.square().sum(-1) / settings.pixel_sigma**2
    weights = pixels.counts / settings.pixel_sigma**2 * geman_mcclure_weights(squared, scale_sq=COLOUR_ROBUST_SCALE_SQ)
    derivatives = colour_derivatives(face, pixels)
    if errors.device.type == "cpu" and errors.dtype == torch.float32:
        add_colour_equations(equations, face, pixels, derivatives, errors=errors, weights=weights)
        return
    jacobian = derivatives.jacobian(face.basis, pixels)
    equations.add(jacobian.flatten(0, 1), errors.flatten(), weights[:, None].expand(-1, 3).flatten())


@dataclass(frozen=True)
class _ColourDerivatives:
    """Derivatives of the colour errors of N surface points."""

    by_corner: Float[Tensor, "N 3 9"]
    """By the corners of the triangle, in the order corner, axis."""
    by_pose: Float[Tensor, "N 3 6"]
    """By the unknowns of the pose."""
    shading: Float[Tensor, "N 3"]
    """By the albedo of the same channel."""
    by_light: Float[Tensor, "N 3 9"]
    """By the unknowns of the light of the same channel."""

    def jacobian(self, basis: ShapeBasis, pixels: _Pixels) -> Float[Tensor, "N 3 M"]:
        """Derivatives by all unknowns."""
        by_shape = torch.bmm(self.by_corner, basis.vertices[pixels.corners].flatten(1, 2))
        by_albedo = pixels.between(basis.albedo.flatten(1)).unflatten(1, (3, -1)) * self.shading[..., None]
        by_light = torch.einsum("nck,cd->nckd", self.by_light, torch.eye(3).to(self.by_light)).flatten(2)
        return torch.cat([by_shape, self.by_pose, by_albedo, by_light], dim=-1)


def add_colour_equations(
    equations: NormalEquations,
    face: _Face,
    pixels: _Pixels,
    derivatives: _ColourDerivatives,
    *,
    errors: Float[Tensor, "N 3"],
    weights: Float[Tensor, "N"],
) -> None:
    """`equations.add` of the Jacobian of `derivatives`, in one pass of the native kernels over the pixels."""
    hessian, gradient = torch.empty_like(equations.hessian), torch.empty_like(equations.gradient)
    inputs = (
        pixels.corners.int(), pixels.barycentrics, derivatives.by_corner, derivatives.by_pose, derivatives.shading,
        derivatives.by_light, errors, weights, face.basis.vertices, face.basis.albedo,
    )  # fmt: skip
    arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
    native().colour_equations(*arrays, torch.get_num_threads(), hessian.numpy(), gradient.numpy())
    equations.hessian.add_(hessian)
    equations.gradient.add_(gradient)


def colour_derivatives(face: _Face, pixels: _Pixels) -> _ColourDerivatives:
    """Derivatives of the colour errors of surface points.

    The normal of the smooth surface turns like that of its triangle.
    """
    albedo, shading = pixels.between(face.albedo), pixels.between(face.shading)
    normals = F.normalize(pixels.between(face.normals), dim=-1)
    by_normal = albedo[..., None] * _shading_gradients(normals, face.coefficients.lighting)  # N 3 3, view axes
    points_camera, points = pixels.between(face.vertices_camera), pixels.between(face.vertices)
    photo_gradient = pixels.at(face.energy.photo_gradient[0].flatten(0, 1)).unflatten(1, (3, 2))
    by_camera = -photo_gradient @ face.projection(points_camera)
    by_pose = by_camera @ face.pose.of_points(points @ face.to_view.T)
    by_pose[..., :3] += by_normal @ face.pose.of_normals(normals)
    by_corner = _by_corners(face, pixels, by_normal=by_normal, by_camera=by_camera)
    by_light = face.settings.light_chroma_sigma * albedo[..., None] * sh_basis(normals)[:, None]
    return _ColourDerivatives(by_corner, by_pose, shading, by_light)


def _shading_gradients(normals: Float[Tensor, "N 3"], lighting: Float[Tensor, "1 9 3"]) -> Float[Tensor, "N 3 3"]:
    """Derivative of each channel of the shading by the normal."""
    return torch.stack([shading_gradient(normals[None], level)[0] for level in lighting.unbind(-1)], dim=1)


def _by_corners(
    face: _Face, pixels: _Pixels, *, by_normal: Float[Tensor, "N 3 3"], by_camera: Float[Tensor, "N 3 3"]
) -> Float[Tensor, "N 3 9"]:
    """Derivative by the corners of the triangles: the product of two edges has the direction of the normal."""
    first, second, third = face.vertices[pixels.corners].unbind(1)
    edges = (second - first)[:, None], (third - first)[:, None]
    product = torch.cross(*edges, dim=-1)
    length = product.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    normal = product / length
    in_model = by_normal @ (face.to_view / face.coefficients.pose.scale[0])
    by_product = (in_model - (in_model * normal).sum(-1, keepdim=True) * normal) / length
    by_second = torch.cross(edges[1].expand_as(by_product), by_product, dim=-1)
    by_third = torch.cross(by_product, edges[0].expand_as(by_product), dim=-1)
    by_corner = torch.stack([-(by_second + by_third), by_second, by_third], dim=2)  # N 3 corner 3
    by_corner = by_corner + pixels.barycentrics[:, None, :, None] * (by_camera @ face.to_camera)[:, :, None]
    return by_corner.flatten(2)


def _add_points(equations: NormalEquations, face: _Face) -> None:
    """MediaPipe's points, the distances between their lids, and their depth."""
    model, energy, settings = face.model, face.energy, face.settings
    camera_points = model.mediapipe_points(face.vertices_camera[None])
    points = model.mediapipe_points(face.vertices[None])[0]
    weights = energy.point_weights[0]

    def add(jacobian: Float[Tensor, "P R M"], errors: Float[Tensor, "P R"], sigma: float) -> None:
        precision = (sigma * face.extent_px) ** -2
        robust = geman_mcclure_weights(errors.square().sum(-1) * precision, scale_sq=ROBUST_SCALE_SQ)
        rows = (weights * robust * precision)[:, None].expand_as(errors).flatten()
        equations.add(jacobian.flatten(0, 1), errors.flatten(), rows)

    by_camera = face.projection(camera_points[0])
    of_pixels = face.by_geometry(by_camera, face.basis.points, points)
    predicted_px = face.targets.camera.project(camera_points)
    lid_errors = energy.lids.residuals(predicted_px)[0]
    equations.add(energy.lids.across(of_pixels[None])[0], lid_errors, torch.ones_like(lid_errors))
    offsets = predicted_px[0] - face.targets.landmarks468_px[0]
    add(of_pixels, offsets, settings.landmark_sigma)
    depth_errors = energy.depth_errors(camera_points)
    if depth_errors is not None:
        by_depth = torch.zeros_like(by_camera[:, :1])
        by_depth[..., 2] = 1
        depth, focal = camera_points[0, :, 2:], face.targets.camera.focal_px[0]
        by_unknowns = face.by_geometry(by_depth, face.basis.points, points)[:, 0]
        of_scaled = focal / depth.mean() * (by_unknowns - depth / depth.mean() * by_unknowns.mean(0))
        jacobian = energy.without_plane(of_scaled[None])[0]
        add(jacobian[:, None], depth_errors[0, :, None], settings.depth_sigma)


def _add_contour(equations: NormalEquations, face: _Face) -> None:
    found = contour_errors(face.energy.contour, face.rendered, face.targets, face.settings)
    used = found.weights[0] > 0
    ends, shares, normals = found.ends[0, used], found.shares[0, used, :, None], found.normals[0, used]
    points, camera_points = ((values[ends] * shares).sum(1) for values in (face.vertices, face.vertices_camera))
    basis = (face.basis.vertices[ends] * shares[..., None]).sum(1)
    by_camera = normals[:, None] @ face.projection(camera_points) / (face.settings.contour_sigma * face.extent_px)
    errors = found.errors[0, used]
    weights = found.weights[0, used] * geman_mcclure_weights(errors.square(), scale_sq=ROBUST_SCALE_SQ)
    equations.add(face.by_geometry(by_camera, basis, points)[:, 0], errors, weights)


def _add_person_priors(equations: NormalEquations, energy: PhotometricEnergy, unknowns: Unknowns) -> None:
    """Priors of identity and albedo, and the predicted identity."""
    identity, albedo = unknowns.identity[0], unknowns.albedo[0]
    part = slice(len(identity))
    equations.hessian[part, part] += energy.identity_precision
    equations.gradient[part] += energy.identity_precision @ identity
    if (prediction := energy.prediction) is not None:
        equations.hessian[part, part] += prediction.precision
        equations.gradient[part] += prediction.gradient(unknowns.identity)[0]
    part = slice(-len(albedo) - unknowns.lighting.numel(), -unknowns.lighting.numel())
    equations.hessian.diagonal()[part] += 1
    equations.gradient[part] += albedo


def _add_photo_priors(equations: NormalEquations, face: _Face) -> None:
    """Priors of expression, pose and light."""
    unknowns, settings = face.unknowns, face.settings
    first, count = len(unknowns.identity[0]), len(unknowns.expression[0])
    expression, pose = slice(first, first + count), slice(first + count, first + count + 6)
    equations.hessian.diagonal()[expression] += 1
    equations.gradient[expression] += unknowns.expression[0]
    # The weak prior of the pose is centred on the present pose: it limits the step and moves nothing.
    equations.hessian.diagonal()[pose] += POSE_PRECISION
    # The prior of the light is in the order channel, harmonic; the unknowns are in the order harmonic, channel.
    precision = face.energy.light_precision.view(3, 9, 3, 9).permute(1, 0, 3, 2).reshape(27, 27)
    offset = face.coefficients.lighting[0] - expected_light(face.targets.exposure).view(3, 9).T
    light = slice(-len(precision), None)
    equations.hessian[light, light] += precision * settings.light_chroma_sigma**2
    equations.gradient[light] += settings.light_chroma_sigma * (precision @ offset.flatten())
