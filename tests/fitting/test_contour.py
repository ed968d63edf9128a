"""The occluding contour of a face in front of its background, on a dome with a nose."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mien.camera import Camera
from mien.fitting import FitSettings, FitTargets, contour
from mien.fitting.contour import ContourMesh, contour_energy
from mien.fitting.problem import COVERED_WEIGHT
from mien.geometry import boundary_vertices, vertex_normals
from mien.lighting import ambient_lighting
from mien.morphable import FaceCoefficients, MorphableModel
from mien.rendering import RenderOutput, render
from mien.typing import Tensor

SIDE = 160
YAW = 0.9
"""Radians; the far side of the dome turns away from the camera before the mesh ends."""
BACKGROUND = torch.tensor([0.1, 0.2, 0.5])


def turned(model: MorphableModel, *, right_m: float = 0.0) -> FaceCoefficients:
    identity, expression, albedo = model.counts
    mean = FaceCoefficients.mean(identity=identity, expression=expression, albedo=albedo, distance=0.5)
    pose = replace(
        mean.pose,
        rotation=torch.tensor([[0.0, YAW, 0.0]]),
        translation=mean.pose.translation + torch.tensor([[right_m, 0.0, 0.0]]),
    )
    return replace(mean, pose=pose, lighting=ambient_lighting(1, level=0.85))


def targets_of(
    model: MorphableModel, coefficients: FaceCoefficients, background: Tensor = BACKGROUND
) -> tuple[FitTargets, RenderOutput]:
    camera = Camera.from_fov(30.0, image_size=(SIDE, SIDE))
    rendered = render(model, coefficients, camera)
    inside = (rendered.triangle_ids >= 0).float()
    photo = rendered.image.detach() * inside[:, None] + background[:, None, None] * (1 - inside)[:, None]
    mesh = camera.project(model.mediapipe_points(rendered.surface.vertices_camera)).detach()
    landmarks = rendered.vertices_px[:, model.landmarks68].detach()
    return FitTargets(photo, inside, inside, torch.ones(1), camera, mesh, landmarks), rendered


def test_the_end_of_the_face_is_found_in_the_photo(tiny: MorphableModel) -> None:
    targets, there = targets_of(tiny, turned(tiny))
    here = render(tiny, turned(tiny, right_m=-0.004), targets.camera)
    moved = float((there.vertices_px - here.vertices_px)[0, :, 0].mean())
    found_contour = contour._occluding_contour(ContourMesh.of(tiny), here, targets)
    found, confidence = contour._search(found_contour, targets.crops, reach_px=0.06 * targets.extent_px[:, None])
    chosen = (found_contour.weights > 0) & (confidence > 0.5)
    assert chosen.sum() >= 10
    off = found - moved * found_contour.normals[..., 0]
    # The dome's triangles are large: their edge and the contour of the smooth normals are most of a pixel apart.
    assert off[chosen].abs().median() < 0.8
    assert 2 < moved < 6


def test_the_end_does_not_jump_between_two_alike(tiny: MorphableModel) -> None:
    """Skin ends at 76 and at 84 pixels; the contour is at 80."""
    skin, photo = torch.tensor([0.8, 0.6, 0.5]), BACKGROUND[:, None, None].repeat(1, SIDE, SIDE)
    photo[..., :76] = photo[..., 80:84] = skin[:, None, None]
    point, one = torch.full((1, 1, 2), SIDE / 2), torch.ones(1, 1)
    found_contour = contour._Contour(
        torch.zeros(1, 1, 2, dtype=torch.long),
        torch.full_like(point, 0.5),
        point,
        torch.eye(2)[None, :1],
        skin[None, None],
        one,
    )
    found = []
    for brighter in (76, 80):
        changed = photo.clone()
        changed[..., brighter : brighter + 4] += 2e-3
        distance, confidence = contour._search(found_contour, changed[None], reach_px=torch.full((1, 1), 12.0))
        found.append(float(distance))
        assert confidence > 0.2
    assert abs(found[0] - found[1]) < 0.5


def test_the_energy_pulls_the_face_to_its_contour(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny, turned(tiny))
    mesh, settings = ContourMesh.of(tiny), FitSettings()
    right = torch.tensor(-0.004, requires_grad=True)
    coefficients = turned(tiny)
    pose = replace(
        coefficients.pose, translation=coefficients.pose.translation + right * torch.tensor([[1.0, 0.0, 0.0]])
    )
    away = contour_energy(mesh, render(tiny, replace(coefficients, pose=pose), targets.camera), targets, settings)
    (slope,) = torch.autograd.grad(away, right)
    at_home = contour_energy(mesh, render(tiny, coefficients, targets.camera), targets, settings)
    assert slope < 0
    assert at_home < 0.35 * away


def test_a_background_with_the_colour_of_skin_has_no_energy(tiny: MorphableModel) -> None:
    skin = render(tiny, turned(tiny), Camera.from_fov(30.0, image_size=(SIDE, SIDE))).surface.colours.mean((0, 1))
    targets, rendered = targets_of(tiny, turned(tiny, right_m=0.003), background=skin)
    assert contour_energy(ContourMesh.of(tiny), rendered, targets, FitSettings()).item() == pytest.approx(0, abs=1e-6)


def test_contour_points_behind_an_occluder_count_less(tiny: MorphableModel) -> None:
    """The occluder hides the lower half of the picture."""
    targets, _ = targets_of(tiny, turned(tiny))
    here = render(tiny, turned(tiny, right_m=-0.004), targets.camera)
    covered = (torch.arange(SIDE) >= SIDE // 2).float()[None, :, None].expand(1, SIDE, SIDE)
    mesh, settings = ContourMesh.of(tiny), FitSettings()
    before = contour.contour_errors(mesh, here, targets, settings)
    after = contour.contour_errors(mesh, here, replace(targets, covered=covered), settings)
    first, second = (here.vertices_px[0, before.ends[0, :, k], 1] for k in (0, 1))
    share = before.shares[0]
    row = first * share[:, 0] + second * share[:, 1]
    counted = before.weights[0] > 0
    hidden, shown = counted & (row > SIDE / 2 + 6), counted & (row < SIDE / 2 - 6)
    assert hidden.any()
    assert shown.any()
    torch.testing.assert_close(after.weights[0][hidden], COVERED_WEIGHT * before.weights[0][hidden])
    torch.testing.assert_close(after.weights[0][shown], before.weights[0][shown])
    nothing = contour.contour_errors(mesh, here, replace(targets, covered=0 * covered), settings)
    assert torch.equal(nothing.weights, before.weights)


def test_a_nose_in_front_of_the_cheek_has_no_weight(tiny: MorphableModel) -> None:
    targets, rendered = targets_of(tiny, turned(tiny))
    found_contour = contour._occluding_contour(ContourMesh.of(tiny), rendered, targets)
    beyond = found_contour.points_px + found_contour.normals * (contour.BEHIND_SHARE * targets.extent_px)[:, None, None]
    column, row = beyond.floor().long().clamp(0, SIDE - 1).unbind(-1)
    behind = rendered.triangle_ids[0, row[0], column[0]] >= 0
    assert behind.any()
    assert (found_contour.weights[0][behind] == 0).all()
    assert (found_contour.weights[0][~behind] > 0).any()


def test_the_boundary_of_the_mesh_is_not_trusted(tiny: MorphableModel) -> None:
    trust = ContourMesh.of(tiny).trust
    assert (trust[boundary_vertices(tiny.triangles)] == 0).all()
    assert trust.max() == 1


def test_surfaces_above_the_neck_are_not_trusted(tiny: MorphableModel) -> None:
    trust = ContourMesh.of(tiny).trust
    down = -vertex_normals(tiny.mean[None], tiny.triangles)[0, :, 1]
    assert (down > 0.6).any()
    assert (trust[down > 0.6] == 0).all()
    upside_down = copy.deepcopy(tiny)
    upside_down.mean = tiny.mean * torch.tensor([-1.0, -1.0, 1.0])
    assert ContourMesh.of(upside_down).trust[down > 0.6].max() > 0


def test_a_short_contour_weighs_less_than_a_whole_one(tiny: MorphableModel) -> None:
    targets, _ = targets_of(tiny, turned(tiny))
    rendered = render(tiny, turned(tiny, right_m=-0.004), targets.camera)
    mesh = ContourMesh.of(tiny)
    whole, half, least = (
        contour_energy(replace(mesh, trust=mesh.trust * share), rendered, targets, FitSettings()).item()
        for share in (1.0, 0.5, 1e-3)
    )
    # The contour of the dome is much longer than a whole contour must be, so half of the trust is enough.
    assert half == pytest.approx(whole, rel=1e-3)
    assert 0 < least < 0.1 * whole


def test_without_a_trusted_contour_there_is_no_energy(tiny: MorphableModel) -> None:
    targets, rendered = targets_of(tiny, turned(tiny))
    none = replace(ContourMesh.of(tiny), trust=torch.zeros(len(tiny.mean)))
    assert contour_energy(none, rendered, targets, FitSettings()).item() == 0


@pytest.mark.parametrize(("sigmas", "expected"), [(1.0, 0.9), (3.0, 4.5), (-3.0, 4.5)])
def test_the_energy_counts_sixty_points_and_is_robust_beyond_three_sigmas(
    tiny: MorphableModel, monkeypatch: pytest.MonkeyPatch, sigmas: float, expected: float
) -> None:
    targets, rendered = targets_of(tiny, turned(tiny))
    settings = FitSettings()
    distance = sigmas * settings.contour_sigma * targets.extent_px[0]

    def search(found: contour._Contour, crops: Tensor, *, reach_px: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(found.weights, float(distance)), torch.ones_like(found.weights)

    monkeypatch.setattr(contour, "_search", search)
    energy = contour_energy(ContourMesh.of(tiny), rendered, targets, settings)
    assert energy.item() == pytest.approx(0.5 * 60 * expected, rel=1e-3)


def test_contour_normals_point_outwards_in_the_image(tiny: MorphableModel) -> None:
    targets, rendered = targets_of(tiny, turned(tiny))
    found = contour._occluding_contour(ContourMesh.of(tiny), rendered, targets)
    column, row = (found.points_px + 3 * found.normals).floor().long().clamp(0, SIDE - 1).unbind(-1)
    assert (rendered.triangle_ids[0, row[0], column[0]][found.weights[0] > 0] < 0).all()
    inside = found.points_px[0] - rendered.vertices_px[0].mean(0)
    assert ((inside * found.normals[0]).sum(-1)[found.weights[0] > 0] > 0).float().mean() > 0.8


def test_eyes_are_not_trusted(tiny: MorphableModel) -> None:
    trust = ContourMesh.of(tiny).trust
    assert (trust[tiny.masks.eyes > 0] == 0).all()
    assert (trust[tiny.masks.brows > 0] > 0).any()
