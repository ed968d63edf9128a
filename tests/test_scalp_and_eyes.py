"""Hair as a texture, and textures of eyeballs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mien.errors import ConfigError
from mien.io.result_files import parse_scalp
from mien.morphable import HeadModel, MorphableModel, load_head, load_model
from mien.texture.eyes import IRIS_RADIUS_M, EyeMap, eye_texture, seen_of_eye
from mien.texture.scalp import SurfaceNoise, hair_brightness, hair_colour, hair_cover, within_hairline_mm
from mien.typing import Tensor

WHITE, IRIS, PUPIL, LID = (torch.tensor(c) for c in ([0.7, 0.66, 0.64], [0.3, 0.4, 0.5], [0.05] * 3, [0.6, 0.42, 0.35]))


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def head(model: MorphableModel) -> HeadModel:
    return load_head(model)


def test_hair_grows_on_the_scalp_and_not_on_face_ears_and_neck(model: MorphableModel, head: HeadModel) -> None:
    places = torch.cat([model.mean, head.mean])[head.part("skin").vertices.unique()]
    distance = within_hairline_mm(places)
    x, y, z = (1000 * places).unbind(-1)
    back = z < -130
    for grows, where in ((True, y > 115), (True, back & (y > -20)), (False, back & (y < -90))):
        assert where.sum() > 20
        assert bool(((distance > 5) == grows)[where].all())
    ears = (x.abs() > 86) & (y > -60)
    assert ears.sum() > 50
    assert float((distance[ears] < 2).float().mean()) > 0.98
    face = model.masks.skin * (1 - model.masks.neck)
    features = (model.masks.brows + model.masks.eyes + model.masks.lips) > 0.1
    assert float(within_hairline_mm(model.mean)[features].max()) < -10
    assert 0.03 < float((within_hairline_mm(model.mean)[face > 0.5] > 0).float().mean()) < 0.3


def test_the_hairline_is_symmetric_and_recedes_at_the_corners_of_the_forehead() -> None:
    angle = torch.linspace(-170, 170, 69).deg2rad()
    ring = torch.stack([0.07 * angle.sin(), torch.full_like(angle, 0.06), 0.07 * angle.cos() - 0.045], dim=-1)
    distance = within_hairline_mm(ring)
    torch.testing.assert_close(distance, distance.flip(0), atol=1e-3, rtol=0)

    def at(degrees: float) -> float:
        place = torch.tensor(
            [[0.07 * math.sin(math.radians(degrees)), 0.085, 0.07 * math.cos(math.radians(degrees)) - 0.045]]
        )
        return float(within_hairline_mm(place))

    assert at(33) < at(0) < at(60)


def test_short_hair_covers_more_than_stubble_and_nothing_beyond_the_hairline() -> None:
    distance = torch.tensor([-40.0, 0.0, 40.0])
    plain = torch.zeros(3)
    hair, stubble = (hair_cover(distance, waves=plain, hairs=plain, scalp=scalp) for scalp in ("hair", "skin"))
    assert hair[0] < 0.01
    assert hair[0] < hair[1] < hair[2]
    assert stubble[2] < 0.3 * hair[2]
    hairs = torch.linspace(-3, 3, 100)
    assert hair_cover(torch.zeros(100), waves=torch.zeros(100), hairs=hairs, scalp="hair").std() > 0.05
    assert float(hair_brightness(hairs).mean()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="scalp='bald'"):
        parse_scalp("bald")


def test_noise_has_no_step_where_it_repeats() -> None:
    noise = SurfaceNoise(0)
    line = torch.linspace(0, 0.2, 20001)
    values = noise(torch.stack([line, 0.3 * line, -line])[:, None], cell_m=1e-3)[0]
    assert float(values.mean()) == pytest.approx(0, abs=0.25)
    assert float(values.std()) == pytest.approx(1, abs=0.25)
    assert float((values[1:] - values[:-1]).abs().max()) < 0.2  # 0.015 of a cell; a step would be about 1


def test_the_hairs_colour_is_that_above_the_hairline_without_light(model: MorphableModel) -> None:
    hair, light = torch.tensor([0.30, 0.22, 0.15]), torch.tensor([0.9, 0.8, 0.7])
    above = within_hairline_mm(model.mean) > 0
    noise = 1 + 0.3 * torch.rand(len(above), 1, generator=torch.Generator().manual_seed(0))
    colours = torch.where(above[:, None], hair * noise, torch.tensor([0.8, 0.6, 0.5])) * light
    shade = light.expand(len(above), 3)
    found = hair_colour(colours, shade, model.mean, torch.ones_like(above))
    assert found is not None
    torch.testing.assert_close(found / found.sum(), hair / hair.sum(), atol=0.01, rtol=0)
    assert 1.0 < float(found[0] / hair[0]) < 1.15  # the darker half, without the darkest
    assert hair_colour(colours, shade, model.mean, ~above) is None


def sphere(radius: float = 0.012) -> EyeMap:
    """The front half of an eyeball; the face's map shows it from the front."""
    angles = torch.linspace(0, 1.5, 24)
    around = torch.linspace(0, 2 * math.pi, 49)[:-1]
    t, a = (grid.flatten() for grid in torch.meshgrid(angles, around, indexing="ij"))
    points = torch.stack([t.sin() * a.cos(), t.sin() * a.sin(), t.cos()], dim=-1)
    corner = (torch.arange(23)[:, None] * 48 + torch.arange(48)).flatten()
    beside = (torch.arange(23)[:, None] * 48 + torch.arange(1, 49) % 48).flatten()
    triangles = torch.cat(
        [torch.stack(t, -1) for t in ((corner, corner + 48, beside + 48), (corner, beside + 48, beside))]
    )
    return EyeMap(points, triangles, 0.5 + 0.4 * points[:, :2], radius)


def painted_eye(layout: EyeMap, *, towards: Tensor, glint: Tensor, lid_above: float, size: int = 256) -> Tensor:
    """A face's map with nothing but an eye, whose upper part a lid hides."""
    step = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid((0.5 - step) / 0.4, (step - 0.5) / 0.4, indexing="ij")
    points = torch.stack([x, y, (1 - x**2 - y**2).clamp(min=0).sqrt()])
    angle = torch.acos((points * towards[:, None, None]).sum(0).clamp(-1, 1)) / math.asin(
        IRIS_RADIUS_M / layout.radius_m
    )
    eye = torch.where(angle < 1, IRIS[:, None, None], WHITE[:, None, None])
    eye = torch.where(angle < 0.35, PUPIL[:, None, None], eye)
    eye = torch.where((points - glint[:, None, None]).norm(dim=0) < 0.06, torch.ones(3, 1, 1), eye)
    return torch.where(y > lid_above, LID[:, None, None], eye)


def test_the_iris_is_found_completed_under_the_lid_and_loses_its_reflection() -> None:
    layout, size = sphere(), 128
    towards = F.normalize(torch.tensor([0.1, -0.06, 1.0]), dim=0)
    glint = F.normalize(torch.tensor([-0.12, -0.2, 1.0]), dim=0)
    face = painted_eye(layout, towards=towards, glint=glint, lid_above=0.1)
    directions = layout.directions_of_map(size)
    seen = (directions[1:2] < 0.07) & (directions[1:2] > -0.5) & (directions[2:] > 0)
    found = eye_texture(layout, face, shade=torch.full((3,), 0.9), seen=seen.float())

    def at(maps: Tensor, x: float, y: float) -> Tensor:
        towards = F.normalize(torch.tensor([x, y, 1.0]), dim=0)
        return maps.flatten(1)[:, (directions.flatten(1) - towards[:, None]).norm(dim=0).argmin()]

    under_lid = at(found.photo, 0.1, 0.26)
    torch.testing.assert_close(under_lid / under_lid.sum(), IRIS / IRIS.sum(), atol=0.02, rtol=0)
    assert 0.6 < float(under_lid.sum() / IRIS.sum()) < 1  # in its shade
    torch.testing.assert_close(at(found.photo, -0.12, -0.2), torch.ones(3), atol=0.1, rtol=0)
    assert at(found.relit, -0.12, -0.2).max() < 0.75  # the iris or its edge, no lamp
    torch.testing.assert_close(at(found.photo, 0.1, -0.06), PUPIL, atol=0.05, rtol=0)
    assert at(found.relit, -0.5, -0.1).mean() > at(found.relit, 0.25, -0.06).mean() + 0.2  # white and iris
    assert found.relit.max() < 0.95


def test_an_eye_is_seen_through_the_opening_of_the_lids() -> None:
    layout, size = sphere(), 64
    ball = 0.012 * layout.directions + torch.tensor([0.03, 0.01, 0.0])
    wide, low, high = 0.02, 0.008, 0.013  # a lid before the upper half of the eyeball
    x, y = torch.tensor([-wide, wide, wide, -wide]), torch.tensor([low, low, 0.04, 0.04])
    lid = torch.stack([x + 0.03, y, torch.full((4,), high)], dim=-1)
    seen = seen_of_eye(layout, ball, lid, torch.tensor([[0, 1, 2], [0, 2, 3]]), size=size)
    up, front = layout.directions_of_map(size)[1], layout.directions_of_map(size)[2]
    assert float(seen[0][(up > 0.1) & (front > 0.3)].max()) < 0.05
    assert float(seen[0][(up < -0.35) & (up > -0.6) & (front > 0.6)].min()) > 0.95
