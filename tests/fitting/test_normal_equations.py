"""The normal equations of the photometric energy against automatic differentiation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mien.fitting import FitSettings, FitTargets
from mien.fitting.normal_equations import (
    NormalEquations,
    ShapeBasis,
    _Face,
    _Pixels,
    _sampled_pixels,
    add_colour_equations,
    colour_derivatives,
    normal_equations,
)
from mien.fitting.photometric import EFFECTIVE_PIXELS, PhotometricEnergy
from mien.fitting.prediction import PredictedIdentity
from mien.fitting.unknowns import Unknowns
from mien.geometry import triangle_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rasterizer.cpu import native
from mien.rendering import RenderOutput
from mien.typing import Tensor
from tests.fitting.test_energy import ground_truth, targets_of

SETTINGS = FitSettings()


def away_from(face: FaceCoefficients) -> FaceCoefficients:
    """A face a little off in every unknown."""
    pose = replace(
        face.pose,
        rotation=face.pose.rotation + 0.03,
        translation=face.pose.translation + torch.tensor([0.002, -0.001, 0.01]),
    )
    return replace(
        face,
        identity=face.identity + 0.3,
        expression=face.expression + 0.1,
        albedo=face.albedo - 0.2,
        lighting=face.lighting + 0.02,
        pose=pose,
    )


def problem_of(
    model: MorphableModel, *, masked: bool = True, with_depth: bool = True
) -> tuple[PhotometricEnergy, Unknowns, RenderOutput]:
    gt = ground_truth(model)
    targets = targets_of(model, gt)
    if with_depth:
        points = model.mediapipe_points(gt.pose.to_camera(model.vertices(gt.identity, gt.expression)))
        depth = targets.camera.focal_px[:, None] * points[..., 2] / points[..., 2].mean(1, keepdim=True)
        targets = replace(targets, landmarks468_depth_px=depth)
    if not masked:
        targets = replace(targets, mask=torch.zeros_like(targets.mask))
    weights = torch.linspace(0.5, 2, 468)[None]
    prediction = PredictedIdentity.of(model, gt.identity - 0.4, sigma_m=0.002)
    energy = PhotometricEnergy(model, targets, settings=SETTINGS, point_weights=weights, prediction=prediction)
    unknowns = Unknowns(model, away_from(gt), SETTINGS)
    # Pose and light have a vector of their own, in which they start at zero.
    unknowns.assign(unknowns.vector() + 0.1)
    return energy, unknowns, energy.render(unknowns.coefficients())


def basis_of(model: MorphableModel) -> ShapeBasis:
    return ShapeBasis(model, expression_sigmas=SETTINGS.expression_sigmas(model))


def test_the_gradient_of_points_depth_contour_and_priors_is_that_of_the_energy(tiny: MorphableModel) -> None:
    energy, unknowns, rendered = problem_of(tiny, masked=False)
    terms = energy.terms(unknowns.coefficients(), rendered)
    for name in ("landmarks", "depth", "contour", "identity_prior", "prediction", "light_prior"):
        assert getattr(terms, name).item() > 0.01, name
    gradients = torch.autograd.grad(terms.total(), unknowns.parameters(), retain_graph=True)
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    found = normal_equations(energy, basis_of(tiny), unknowns, rendered).gradient
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_the_equations_are_symmetric_and_positive_definite(tiny: MorphableModel) -> None:
    energy, unknowns, rendered = problem_of(tiny)
    hessian = normal_equations(energy, basis_of(tiny), unknowns, rendered).hessian.double()
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-4, atol=1e-3)
    assert torch.linalg.eigvalsh((hessian + hessian.T) / 2).min() > 0


def test_the_pose_derivatives_are_those_of_the_pose(tiny: MorphableModel) -> None:
    _, unknowns, _ = problem_of(tiny)
    points = torch.randn(5, 3) * 0.1
    pose = unknowns.coefficients().pose
    derivatives = unknowns.pose_derivatives()
    for rows, found in (
        (pose.to_camera(points[None])[0], derivatives.of_points(pose.to_view_axes(points[None])[0].detach())),
        (pose.to_view_axes(points[None])[0], derivatives.of_normals(pose.to_view_axes(points[None])[0].detach())),
    ):
        count = found.shape[-1]
        for k, row in enumerate(rows.flatten()):
            by_pose = torch.autograd.grad(
                row,
                [unknowns.rotation, unknowns.translation],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            expected = torch.cat([part.flatten() for part in by_pose])[:count]
            torch.testing.assert_close(found.reshape(-1, count)[k], expected, rtol=1e-4, atol=1e-6)


def ramp(targets: FitTargets) -> tuple[FitTargets, Tensor, Tensor]:
    """A photo whose colours are linear in x and y: its gradient is known everywhere."""
    offset, slopes = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([[2e-3, -1e-3], [1e-3, 3e-3], [-2e-3, 1e-3]])
    y, x = torch.meshgrid(*(torch.arange(size) + 0.5 for size in targets.camera.image_size), indexing="ij")
    photo = offset[:, None, None] + torch.einsum("cd,dyx->cyx", slopes, torch.stack([x, y]))
    return replace(targets, crops=photo[None]), offset, slopes


def separate_pixels(face: _Face) -> _Pixels:
    """Pixels whose triangles share no vertex and lie inside the photo's border."""
    ids = face.rendered.triangle_ids[0].long()
    chosen: list[tuple[int, int]] = []
    taken: set[int] = set()
    for row in range(5, ids.shape[0] - 5, 3):
        for column in range(5, ids.shape[1] - 5, 3):
            corners = set(face.model.triangles[ids[row, column]].tolist())
            if ids[row, column] >= 0 and not corners & taken:
                chosen.append((row, column))
                taken |= corners
    at = tuple(torch.tensor(part) for part in zip(*chosen, strict=True))
    index = at[0] * ids.shape[1] + at[1]
    return _Pixels(index, face.model.triangles[ids[at]], face.rendered.barycentrics[0][at], torch.ones(len(index)))


@torch.no_grad()
def with_flat_normals(face: _Face, pixels: _Pixels) -> None:
    """Give the corners of the pixels' triangles the normals of the triangles."""
    flat = triangle_normals(face.vertices[None], face.model.triangles)[0]
    ids = face.rendered.triangle_ids[0].flatten()[pixels.index].long()
    normals = torch.nn.functional.normalize(flat[ids], dim=-1) @ face.coefficients.pose.rotmat()[0].T
    face.normals, face.shading = face.normals.clone(), face.shading.clone()
    for corner in pixels.corners.unbind(1):
        face.normals[corner] = normals
        face.shading[corner] = shading(normals[None], face.coefficients.lighting)[0]


def test_the_colour_jacobian_is_that_of_flat_triangles_over_a_linear_photo(tiny: MorphableModel) -> None:
    energy, unknowns, rendered = problem_of(tiny)
    energy.targets, offset, slopes = ramp(energy.targets)
    face = _Face(energy, basis_of(tiny), unknowns, rendered)
    pixels = separate_pixels(face)
    assert len(pixels.index) > 10
    with_flat_normals(face, pixels)
    with torch.no_grad():
        found = colour_derivatives(face, pixels).jacobian(face.basis, pixels)

    here = unknowns.coefficients()
    vertices = tiny.vertices(here.identity, here.expression)
    corners = vertices[0][pixels.corners]
    product = torch.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
    normals = here.pose.to_view_axes(torch.nn.functional.normalize(product, dim=-1)[None])
    positions = energy.targets.camera.project(here.pose.to_camera(pixels.between(vertices[0])[None]))[0]
    albedo = pixels.between(tiny.albedo(here.albedo)[0])
    errors = albedo * shading(normals, here.lighting)[0] - (offset + positions @ slopes.T)
    for k in range(0, len(errors), 3):
        for channel in range(3):
            gradients = torch.autograd.grad(errors[k, channel], unknowns.parameters(), retain_graph=True)
            expected = torch.cat([gradient.flatten() for gradient in gradients])
            torch.testing.assert_close(found[k, channel], expected, rtol=2e-3, atol=2e-5)


def test_pixels_count_in_proportion_to_the_mask(tiny: MorphableModel) -> None:
    energy, unknowns, rendered = problem_of(tiny)
    side = energy.targets.mask.shape[-1]
    energy.targets.mask[..., : side // 2] *= 0.25
    face = _Face(energy, basis_of(tiny), unknowns, rendered)
    with torch.no_grad():
        pixels = _sampled_pixels(face)
    weight = energy.targets.mask * (rendered.triangle_ids >= 0)
    share = float(weight[..., : side // 2].sum() / weight.sum())
    left = pixels.counts[pixels.index % side < side // 2].sum()
    assert float(left / pixels.counts.sum()) == pytest.approx(share, abs=0.01)
    assert float(pixels.counts.sum()) == pytest.approx(EFFECTIVE_PIXELS)


@pytest.mark.parametrize("pixels", [50, 200])
def test_sampled_pixels_are_a_lattice_that_small_changes_do_not_move(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    monkeypatch.setattr("mien.fitting.normal_equations.PIXELS", pixels)
    energy, unknowns, rendered = problem_of(tiny)
    face = _Face(energy, basis_of(tiny), unknowns, rendered)
    with torch.no_grad():
        before = _sampled_pixels(face).index
        energy.targets.mask[:] *= 1 - 1e-3 * torch.rand(energy.targets.mask.shape)
        assert torch.equal(_sampled_pixels(face).index, before)
    assert len(before) == pytest.approx(pixels, rel=0.2)


def test_held_unknowns_are_expressions_that_would_leave_their_range(tiny: MorphableModel) -> None:
    _, unknowns, _ = problem_of(tiny)
    vector = unknowns.vector()
    first = unknowns.identity.numel()
    least, largest = float(unknowns.least[0]), float(unknowns.largest[0])
    vector[first : first + 4] = torch.tensor([least, least, largest, largest])
    vector[0] = least
    gradient = torch.zeros_like(vector)
    gradient[0], gradient[first : first + 4] = 1.0, torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert unknowns.held(vector, gradient).nonzero()[:, 0].tolist() == [first, first + 3]


@pytest.mark.parametrize("count", [0, 1, 9, None])
def test_the_native_sums_of_colours_are_those_of_the_jacobian(tiny: MorphableModel, count: int | None) -> None:
    energy, unknowns, rendered = problem_of(tiny)
    basis = basis_of(tiny)
    face = _Face(energy, basis, unknowns, rendered)
    with torch.no_grad():
        all_pixels = _sampled_pixels(face)
        parts = (all_pixels.index, all_pixels.corners, all_pixels.barycentrics, all_pixels.counts)
        pixels = _Pixels(*(values[:count] for values in parts))
        derivatives = colour_derivatives(face, pixels)
        errors, weights = torch.randn(len(pixels.index), 3), torch.rand(len(pixels.index))
        size = len(unknowns.vector())
        expected, found, threaded = (NormalEquations(torch.ones(size, size), torch.ones(size)) for _ in range(3))
        jacobian = derivatives.jacobian(basis, pixels)
        expected.add(jacobian.flatten(0, 1), errors.flatten(), weights[:, None].expand(-1, 3).flatten())
        add_colour_equations(found, face, pixels, derivatives, errors=errors, weights=weights)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            add_colour_equations(threaded, face, pixels, derivatives, errors=errors, weights=weights)
        finally:
            torch.set_num_threads(threads)
    scale = float(expected.hessian.abs().max())
    torch.testing.assert_close(found.hessian, expected.hessian, rtol=1e-4, atol=1e-6 * scale)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-4, atol=1e-6 * scale)
    assert torch.equal(found.hessian, threaded.hessian)
    assert torch.equal(found.gradient, threaded.gradient)


@pytest.mark.parametrize("isa", native().available_isas().split())
def test_the_native_sums_are_the_same_on_every_instruction_set(tiny: MorphableModel, isa: str) -> None:
    energy, unknowns, rendered = problem_of(tiny)
    best = native().current_isa()
    expected = normal_equations(energy, basis_of(tiny), unknowns, rendered)
    native().select_isa(isa)
    try:
        found = normal_equations(energy, basis_of(tiny), unknowns, rendered)
    finally:
        native().select_isa(best)
    torch.testing.assert_close(found.hessian, expected.hessian, rtol=1e-4, atol=1e-6 * float(expected.hessian.max()))


def test_the_shape_basis_belongs_to_the_settings(tiny: MorphableModel) -> None:
    once = ShapeBasis.of(tiny, SETTINGS)
    assert ShapeBasis.of(tiny, replace(SETTINGS, photometric_steps=3)) is once
    torch.testing.assert_close(once.vertices, basis_of(tiny).vertices)
    other = replace(SETTINGS, expression_sigma=0.5)
    wider = ShapeBasis(tiny, expression_sigmas=other.expression_sigmas(tiny))
    torch.testing.assert_close(ShapeBasis.of(tiny, other).vertices, wider.vertices)
