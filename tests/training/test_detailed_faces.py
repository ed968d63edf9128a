"""Synthetic faces with known detail maps: the image shows the maps, and a face is a function of its number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mien.morphable import MorphableModel, load_model
from mien.rendering import VertexDetail, build_surface, draw_texture, sample_map
from mien.texture import DetailMaps, TexelAtlas, texel_face
from mien.training.coarse import landmarks68
from mien.training.data.batch import FaceBatch
from mien.training.synthetic import detailed_faces as detailed
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.samples import write_samples

SIZE, MAP = 64, 64


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


@pytest.fixture(scope="module")
def faces(model: MorphableModel) -> DetailedFaces:
    return DetailedFaces(model, size=SIZE, map_size=MAP, seed=2)


@pytest.fixture(scope="module")
def batch(faces: DetailedFaces) -> FaceBatch:
    return faces.render(range(12))


def rendered(model: MorphableModel, batch: FaceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The faces rendered again from ground truth, camera and maps alone, and the pixels that they cover."""
    assert batch.gt is not None and batch.maps is not None
    atlas = TexelAtlas.of(model, MAP)
    face = batch.gt.coefficients(batch.camera)
    surface = build_surface(model, face)
    texels = texel_face(atlas, model, face, surface)
    texture = texels.colours(batch.maps.texture_offset, batch.maps.displacement)
    height = sample_map(batch.maps.displacement, model.uv)[..., 0]
    displaced = build_surface(model, face, detail=VertexDetail(height, torch.zeros_like(surface.albedo)))
    fine = batch.camera.resized(2 * SIZE)
    image, covered = draw_texture(model, displaced.vertices_camera, fine, texture=atlas.dilate(texture))
    return F.avg_pool2d(image, 2), F.avg_pool2d(covered, 2)


def test_a_face_is_the_same_in_every_batch(faces: DetailedFaces, model: MorphableModel) -> None:
    together, apart = faces.batch([4, 5, 6]), faces.batch([6])
    torch.testing.assert_close(together.images[2:], apart.images, atol=1e-5, rtol=0)
    assert together.maps is not None and apart.maps is not None
    torch.testing.assert_close(together.maps.displacement[2:], apart.maps.displacement, atol=1e-8, rtol=0)
    torch.testing.assert_close(together.maps.texture_offset[2:], apart.maps.texture_offset, atol=1e-5, rtol=0)
    assert together.names[2:] == apart.names == ("detailed-2-6",)
    other = DetailedFaces(model, size=SIZE, map_size=MAP, seed=3).batch([6])
    assert (other.images - apart.images).abs().mean() > 0.02


def test_ground_truth_leads_back_to_the_points(model: MorphableModel, batch: FaceBatch) -> None:
    assert batch.gt is not None
    face = batch.gt.coefficients(batch.camera)
    torch.testing.assert_close(landmarks68(model, face, batch.camera), batch.landmarks68_px, atol=2e-3, rtol=0)


def test_the_image_is_rendered_from_its_ground_truth(
    model: MorphableModel, faces: DetailedFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the darkening of hollows; the rest is rounding that decides which triangle is in front."""
    monkeypatch.setattr(detailed, "MAX_DARKENING", 0.0)
    batch = faces.render(range(8))
    again, covered = rendered(model, batch)
    seen = (batch.mask > 0.99) & (covered == 1)
    assert (seen.float().mean((1, 2)) > 0.1).all()
    difference = (again.clamp(0, 1) - batch.images).abs().mean(1)[seen]
    assert difference.mean() < 1e-3
    assert difference.quantile(0.99) < 5e-3


def test_hollows_are_darker_than_their_shading(
    model: MorphableModel, faces: DetailedFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The darkening is in hollows alone, and not in the maps."""
    darkened = faces.render(range(8))
    monkeypatch.setattr(detailed, "MAX_DARKENING", 0.0)
    plain = faces.render(range(8))
    assert darkened.maps is not None and plain.maps is not None
    assert torch.equal(darkened.maps.texture_offset, plain.maps.texture_offset)
    assert torch.equal(darkened.maps.displacement, plain.maps.displacement)
    assert (darkened.images <= plain.images + 1e-3).float().mean() > 0.9


def test_relief_shows_in_the_image(
    model: MorphableModel, faces: DetailedFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrinkled face rendered without its displacement differs more from its image; a flat face does not."""
    monkeypatch.setattr(detailed, "MAX_DARKENING", 0.0)
    batch = faces.render(range(12))
    assert batch.maps is not None
    flat_maps = DetailMaps(batch.maps.texture_offset, torch.zeros_like(batch.maps.displacement))
    inside = -F.max_pool2d(-(batch.mask > 0.99).float()[:, None], 5, 1, 2)[:, 0]
    errors = []
    for maps in (batch.maps, flat_maps):
        again, covered = rendered(model, replace(batch, maps=maps))
        errors.append(((again.clamp(0, 1) - batch.images).abs().mean(1) * inside * (covered == 1)).sum((1, 2)))
    wrinkled = batch.maps.displacement.abs().amax((1, 2, 3)) > 1e-4
    assert 6 <= wrinkled.sum() < 12
    assert (errors[0][wrinkled] < errors[1][wrinkled]).all()
    assert errors[0][wrinkled].sum() < 0.1 * errors[1][wrinkled].sum()
    torch.testing.assert_close(errors[0][~wrinkled], errors[1][~wrinkled])


def test_albedo_stays_between_black_and_white(model: MorphableModel, batch: FaceBatch, faces: DetailedFaces) -> None:
    assert batch.maps is not None and batch.gt is not None
    albedo = faces.atlas.interpolate(model.albedo(batch.gt.albedo)) + batch.maps.texture_offset
    inside = faces.atlas.valid
    assert albedo[:, :, inside].min() > 0
    assert albedo[:, :, inside].max() < 1
    assert (batch.maps.texture_offset[:, :, ~inside] == 0).all()
    assert ((batch.images >= 0) & (batch.images <= 1)).all()
    assert (batch.mask.mean((1, 2)) > 0.03).all()


def test_heads_turn_less_and_lights_have_more_direction(model: MorphableModel, faces: DetailedFaces) -> None:
    yaws, directed = [], []
    for stream in (faces, SyntheticFaces(model, size=32, seed=2)):
        gt = stream.render(range(30)).gt
        assert gt is not None
        lighting = gt.lighting.view(-1, 9, 3).mean(-1)
        yaws.append(float(gt.rotation[:, 1].std()))
        directed.append(float((lighting[:, 1:4].norm(dim=-1) / (lighting[:, 0] + 1)).median()))
    assert yaws[0] < 0.8 * yaws[1]
    assert directed[0] > 1.15 * directed[1]


def test_a_pool_repeats_scenes_but_not_images(model: MorphableModel) -> None:
    pooled = DetailedFaces(model, size=SIZE, map_size=MAP, seed=2, pool=2)
    first, again = pooled.batch([0, 1]), pooled.batch([2, 3])
    assert first.maps is not None and again.maps is not None
    assert torch.equal(first.maps.displacement, again.maps.displacement)
    assert first.images.dtype == first.maps.displacement.dtype == torch.float32
    assert (first.images - again.images).abs().mean((1, 2, 3)).min() > 0.005


def test_a_real_skin_gives_its_tone_and_not_its_wrinkles(model: MorphableModel) -> None:
    """Fine structure of a real skin is not in the ground truth, so it must not be in the image."""
    stripes = torch.where((model.uv[:, 1] * 100).floor() % 2 == 0, 0.2, -0.2)[:, None].expand(-1, 3)
    stripes = stripes * model.masks.skin[:, None]
    offsets = (stripes, torch.full_like(stripes, 0.2))
    levels = []
    for offset in offsets:
        bank = SkinBank(torch.zeros(1, model.counts[2]), offset[None])
        real = DetailedFaces(model, size=32, map_size=96, seed=2, skins=bank).render(range(6)).maps
        plain = DetailedFaces(model, size=32, map_size=96, seed=2).render(range(6)).maps
        assert real is not None and plain is not None
        cheek = (slice(None), slice(None), slice(50, 64), slice(12, 26))
        levels.append((real.texture_offset[cheek].mean(1), plain.texture_offset[cheek].mean(1)))
    fine = [real.std((1, 2)) - plain.std((1, 2)) for real, plain in levels]
    assert fine[0].max() < 0.05
    assert (levels[1][0].mean((1, 2)) - levels[1][1].mean((1, 2))).max() > 0.1


def test_any_model_can_be_rendered_with_detail(tiny: MorphableModel) -> None:
    batch = DetailedFaces(tiny, size=32, map_size=32).batch(range(4))
    assert batch.maps is not None
    assert torch.isfinite(batch.images).all()
    assert torch.isfinite(batch.maps.displacement).all()
    assert torch.isfinite(batch.maps.texture_offset).all()


def test_samples_show_the_maps(tiny: MorphableModel, tmp_path: Path) -> None:
    sheet = write_samples(DetailedFaces(tiny, size=32, map_size=24), tmp_path, count=3)
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 32, 3 * 32)
    with np.load(tmp_path / "truth.npz") as gt:
        assert gt["displacement_m"].shape == (3, 1, 24, 24)
        assert gt["texture_offset"].shape == (3, 3, 24, 24)
