"""Synthetic faces: their ground truth is that of their images, and a face is a function of its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mien.morphable import MorphableModel, load_model
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import mirror_mesh
from mien.perception import FaceMesh
from mien.perception.facemesh import MESH_SIZE
from mien.texture import DetailMaps
from mien.training.coarse import landmarks68
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import SkinBank
from mien.training.synthetic.samples import _map_images, sheet_of, write_samples

SIZE = 48


def test_a_face_is_the_same_in_every_batch(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=SIZE, seed=2)
    together, apart = faces.batch([4, 5, 6]), faces.batch([6])
    torch.testing.assert_close(together.images[2:], apart.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.gt_px[2:], apart.gt_px, atol=1e-3, rtol=0)
    assert together.names[2:] == apart.names == ("synthetic-2-6",)
    assert (faces.batch([7]).images - apart.images).abs().mean() > 0.02
    assert (SyntheticFaces(tiny, size=SIZE, seed=3).batch([6]).images - apart.images).abs().mean() > 0.02


def test_ground_truth_leads_back_to_the_points(tiny: MorphableModel) -> None:
    batch = SyntheticFaces(tiny, size=SIZE, seed=2).batch(range(6))
    assert batch.gt is not None
    face = batch.gt.coefficients(batch.camera)
    torch.testing.assert_close(landmarks68(tiny, face, batch.camera), batch.landmarks68_px, atol=2e-3, rtol=0)
    vertices = face.pose.to_camera(tiny.vertices(face.identity, face.expression))
    projected = batch.camera.project(tiny.mediapipe_points(vertices))
    torch.testing.assert_close(projected, batch.gt_px, atol=2e-3, rtol=0)


def test_faces_fill_their_crops_as_perception_cuts_them(tiny: MorphableModel) -> None:
    batch = SyntheticFaces(tiny, size=SIZE, seed=2).batch(range(12))
    low, high = batch.gt_px.amin(1), batch.gt_px.amax(1)
    side = (high - low).amax(-1) / SIZE
    assert (side - 1 / 1.6).abs().max() < 0.08
    assert (((low + high) / 2 / SIZE) - 0.5).abs().max() < 0.1
    assert ((batch.images >= 0) & (batch.images <= 1)).all()
    assert (batch.mask.mean((1, 2)) > 0.03).all()


def test_a_pool_repeats_scenes_but_not_images(tiny: MorphableModel) -> None:
    faces = SyntheticFaces(tiny, size=SIZE, seed=2, pool=3)
    first, again = faces.batch([0, 1, 2]), faces.batch([3, 4, 5])
    assert torch.equal(first.gt_px, again.gt_px)
    assert (first.images - again.images).abs().mean((1, 2, 3)).min() > 0.005
    torch.testing.assert_close(
        SyntheticFaces(tiny, size=SIZE, seed=2, pool=3).batch([4]).images, again.images[1:2], atol=1e-5, rtol=0
    )


def test_points_are_detected_once_per_scene_at_the_mesh_networks_size() -> None:
    """On the packaged model, whose faces look like faces: near the ground truth, and not equal to it."""
    model, mesh = load_model(), FaceMesh.from_assets()
    faces = SyntheticFaces(model, size=SIZE, seed=2, pool=2, mesh=mesh)
    batch = faces.batch([0, 1, 2])
    assert batch.images.shape[-1] == SIZE
    assert faces.render([0]).images.shape[-1] == MESH_SIZE
    error = (batch.detected_px - batch.gt_px).norm(dim=-1).mean(1) / SIZE
    assert ((error > 0.002) & (error < 0.04)).all(), error
    assert torch.equal(batch.detected_px[0], batch.detected_px[2])
    again = SyntheticFaces(model, size=SIZE, seed=2, mesh=mesh).batch([1])
    torch.testing.assert_close(again.detected_px, batch.detected_px[1:2], atol=1e-4, rtol=0)
    without = SyntheticFaces(model, size=SIZE, seed=2).batch([1])
    assert torch.equal(without.detected_px, without.gt_px)


def test_real_skin_colours_show_in_the_images(tiny: MorphableModel) -> None:
    green = torch.tensor([-0.3, 0.3, -0.3]).expand(2, len(tiny.mean), 3)
    bank = SkinBank(torch.zeros(2, tiny.counts[2]), green)
    plain = SyntheticFaces(tiny, size=SIZE, seed=2).render(range(16))
    real = SyntheticFaces(tiny, size=SIZE, seed=2, skins=bank).render(range(16))

    def greenness(images: torch.Tensor) -> torch.Tensor:
        return (images[:, 1] - images[:, 0]).amax((1, 2))

    assert (greenness(real.images) > greenness(plain.images) + 0.1).float().mean() > 0.25


def test_mirror_tables_are_their_own_inverse(tiny: MorphableModel) -> None:
    order = torch.tensor(IBUG_MIRROR)
    assert torch.equal(order[order], torch.arange(68))
    assert (order[8], order[36], order[48], order[31]) == (8, 45, 54, 35)
    assert len(mirror_mesh(tiny)) == 468


def test_samples_are_written_to_look_at(tiny: MorphableModel, tmp_path: Path) -> None:
    sheet = write_samples(SyntheticFaces(tiny, size=32), tmp_path / "synth", count=9)
    with Image.open(sheet) as image:
        assert image.size == (8 * 32, 2 * 32)
    assert len(list((tmp_path / "synth").glob("face-*.png"))) == 9
    with np.load(tmp_path / "synth" / "truth.npz") as gt:
        assert gt["identity"].shape == (9, tiny.counts[0])
        assert gt["landmarks68_px"].shape == (9, 68, 2)


def test_relief_is_lit_from_the_upper_left_and_offsets_are_shown_on_grey() -> None:
    size = 64
    steps = torch.arange(size) - 31.5
    bump = 2e-3 * torch.exp(-(steps[:, None].square() + steps.square()) / 200)
    offset = torch.zeros(1, 3, size, size)
    offset[:, 0] = 0.2
    relief, shown = _map_images(DetailMaps(offset, bump[None, None]), size)
    assert relief[0, 0, 24, 24] > 0.52 and relief[0, 0, 40, 40] < 0.48
    assert abs(float(relief[0, 0, 24, 40]) - 0.5) < 0.01
    # Slopes in millimetres per texel of 270 / 64 mm, at contrast 0.9.
    down, right = torch.gradient(bump * 1000)
    expected = 0.5 + 0.9 * (down + right) * (size / 270)
    torch.testing.assert_close(relief[0, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(shown, offset + 0.5)


def test_a_sheet_has_eight_columns_and_black_cells_at_the_end() -> None:
    sheet = sheet_of(torch.arange(1, 11).view(10, 1, 1, 1).expand(10, 3, 4, 5) / 20)
    assert sheet.shape == (8, 40, 3)
    assert sheet[0, :, 0].tolist()[::5] == [round(255 * k / 20) for k in range(1, 9)]
    assert sheet[4, :, 0].tolist()[::5] == [round(255 * k / 20) for k in (9, 10)] + [0] * 6
