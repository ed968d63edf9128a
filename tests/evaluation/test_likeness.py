from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.likeness_metrics import FaceRenderer, Likeness, Rendering, camera_of, colour_error, rank_one, whitened
from mien.errors import ConfigError
from tests.tiny_face import tiny_model, tiny_reconstruction


def test_verification_is_a_distance_below_the_networks_threshold():
    vector = torch.zeros(128)
    vector[0] = 1.0
    near, far = vector.clone(), vector.clone()
    near[1], far[1] = 0.59, 0.61
    assert Likeness.between(vector, near).verified
    assert not Likeness.between(vector, far).verified
    assert Likeness.between(vector, 3 * vector).cosine == pytest.approx(1)


def test_rank_one_is_the_share_of_probes_nearest_to_their_own_person():
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    probes = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.0, 0.8]])
    result = rank_one(gallery, probes, cosine=False)
    assert (result.rate, result.people) == (pytest.approx(2 / 3), 3)
    assert result.own_distance < result.other_distance
    assert rank_one(gallery, 5 * gallery, cosine=True).rate == 1
    assert rank_one(gallery, gallery, cosine=True).own_distance == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError):
        rank_one(gallery[:1], probes[:1], cosine=False)


def test_whitening_equalizes_variances():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([30.0, 1.0, 1.0, 1.0])
    gallery = torch.randn(400, 4, generator=generator) * scale
    white, _ = whitened(gallery, gallery, shrinkage=0.0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(4), atol=1e-3, rtol=0)
    # The loud direction is noise, the quiet ones tell people apart.
    probes = gallery + torch.randn(400, 4, generator=generator) * scale * torch.tensor([1.0, 0.02, 0.02, 0.02])
    plain = rank_one(gallery, probes, cosine=False).rate
    assert rank_one(*whitened(gallery, probes, shrinkage=0.0), cosine=False).rate > plain


def test_whitening_works_with_fewer_people_than_coefficients():
    gallery = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    white, same = whitened(gallery, gallery)
    assert white.isfinite().all()
    assert torch.equal(white, same)


def test_colour_error_is_measured_where_rendering_and_mask_overlap():
    image = torch.zeros(1, 3, 4, 4)
    covered = torch.zeros(1, 4, 4)
    covered[:, :2] = 1
    photo = torch.full((1, 3, 4, 4), 0.5)
    photo[:, :, 0] = 0.1
    mask = torch.zeros(1, 4, 4)
    mask[:, 0] = 1
    assert colour_error(Rendering(image, covered), photo, mask=mask) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="overlap"):
        colour_error(Rendering(image, covered), photo, mask=1 - covered)


def test_a_rendering_covers_its_background():
    rendering = Rendering(torch.ones(1, 3, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert rendering.over(torch.zeros(1, 3, 1, 1))[0, 0].tolist() == [[1, 0], [0, 1]]


def test_reconstructions_are_rendered_at_their_position_in_the_photo():
    model = tiny_model()
    face = tiny_reconstruction(model, detail=False)
    points = camera_of(face).project(torch.from_numpy(face.vertices)[None])[0]
    np.testing.assert_allclose(points.numpy(), face.xy, atol=1e-2)
    rendering = FaceRenderer(model).render(face, detail=False)
    width, height = face.image_size
    assert rendering.image.shape == (1, 3, height, width)
    rows, columns = np.nonzero(rendering.covered[0].numpy())
    assert columns.min() >= np.floor(face.xy[:, 0].min()) and columns.max() <= np.ceil(face.xy[:, 0].max())
    assert rows.min() >= np.floor(face.xy[:, 1].min()) and rows.max() <= np.ceil(face.xy[:, 1].max())


def test_only_the_detailed_rendering_shows_the_offset_map():
    model = tiny_model()
    face = tiny_reconstruction(model, detail=True)
    zeros = {name: np.zeros_like(getattr(face, name)) for name in ("texture_offset", "displacement")}
    plain = replace(face, **zeros)
    renderer = FaceRenderer(model)
    assert torch.equal(renderer.render(face, detail=False).image, renderer.render(plain, detail=False).image)
    assert torch.equal(renderer.render(plain, detail=True).image, renderer.render(plain, detail=False).image)
    brighter = replace(plain, texture_offset=plain.texture_offset + np.float32(0.1))
    inside = renderer.render(plain, detail=False).covered[0] > 0
    change = (renderer.render(brighter, detail=True).image - renderer.render(plain, detail=True).image)[0].mean(0)[
        inside
    ]
    assert float(change.mean()) > 0.02
    mean_person = renderer.render_mean_person(face)
    assert not torch.equal(mean_person.image, renderer.render(face, detail=False).image)
