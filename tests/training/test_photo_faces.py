"""Photo faces: points, camera, mask and image stay together through mirror and crop, and the order is seeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.errors import ConfigError
from mien.geometry import vertex_normals
from mien.lighting import shading
from mien.morphable import FaceCoefficients, MorphableModel, load_model
from mien.morphable.landmark_tables import IBUG_MIRROR
from mien.morphable.symmetry import mirror_mesh
from mien.training.data import photos as module
from mien.training.data.augment import Occluder
from mien.training.data.batch import FaceBatch
from mien.training.data.fits import StoredFit
from mien.training.data.photos import PhotoFaces, epoch_order
from mien.training.data.store import FaceStore
from mien.training.synthetic.faces import SyntheticFaces
from tests.training.tiny_data import CROP, write_store

COUNT = 4
NUMBERS = range(40)


@pytest.fixture(scope="module")
def store(tiny: MorphableModel, tmp_path_factory: pytest.TempPathFactory) -> FaceStore:
    folder = write_store(tiny, tmp_path_factory.mktemp("photos") / "store", splits={"train": COUNT})
    return FaceStore(str(folder), split="train")


@pytest.fixture
def plain_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmentation moves and mirrors, and does nothing else."""
    monkeypatch.setattr(module, "simulate_camera", lambda rng, image: image)
    monkeypatch.setattr(module, "NEW_BACKGROUND_SHARE", 0.0)
    monkeypatch.setattr(module, "OCCLUDED_SHARE", 0.0)


def similarity(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Rotation (2, 2) and scale that best move points onto others, and the largest distance that is left."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vh = torch.linalg.svd(a.T @ b)
    rotation = (u @ vh).T
    scale = float(s.sum() / a.square().sum())
    return rotation, scale, float((b - scale * a @ rotation.T).norm(dim=1).max())


def test_points_and_camera_move_together(tiny: MorphableModel, store: FaceStore, plain_images: None) -> None:
    """A crop turned by some angle shows the scene turned by it about the optical axis, through its own camera."""
    augmented = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(NUMBERS)
    names = [row.photo for row in store.faces]
    records = [store[names.index(name)] for name in augmented.names]
    mesh = mirror_mesh(tiny)
    angles, mirrored = [], 0
    for k, record in enumerate(records):
        # Any depths will do: a point on the ray of its pixel, on the camera of the stored crop.
        depth = torch.linspace(0.4, 0.9, 468)[:, None]
        scene = torch.cat(
            [(record.landmarks468_px - torch.tensor(record.centre_px)) / record.focal_px * depth, depth], dim=1
        )
        flipped = scene[mesh] * torch.tensor([-1.0, 1.0, 1.0])
        fits = []
        for side, points in ((1, scene), (-1, flipped)):
            pixels = points[:, :2] / points[:, 2:]
            rotation, _, left = similarity(pixels, augmented.gt_px[k])
            turned = torch.cat([points[:, :2] @ rotation.T, points[:, 2:]], dim=1)
            projected = augmented.camera[k : k + 1].project(turned[None])[0]
            fits.append((float((projected - augmented.gt_px[k]).abs().max()), left, side, float(rotation[1, 0].asin())))
        error, left, side, angle = min(fits)
        assert left < 1e-2
        assert error < 2e-2
        mirrored += side < 0
        angles.append(angle)
    assert 12 <= mirrored <= 28
    assert np.std(angles) == pytest.approx(0.3, rel=0.3)
    assert torch.equal(augmented.detected_px, augmented.gt_px)


def test_landmarks_and_points_move_alike(tiny: MorphableModel, store: FaceStore, plain_images: None) -> None:
    plain = {
        name: face
        for face in (PhotoFaces(store, tiny, size=CROP, seed=0, augment=False).batch([k]) for k in range(COUNT))
        for name in face.names
    }
    augmented = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(NUMBERS)
    mesh, landmarks = mirror_mesh(tiny), torch.tensor(IBUG_MIRROR)
    for k, name in enumerate(augmented.names):
        one = plain[name]
        flip = torch.tensor([-1.0, 1.0])
        as_is = torch.cat([one.gt_px[0], one.landmarks68_px[0]])
        mirrored = torch.cat([one.gt_px[0][mesh], one.landmarks68_px[0][landmarks]]) * flip
        moved = torch.cat([augmented.gt_px[k], augmented.landmarks68_px[k]])
        assert min(similarity(as_is, moved)[2], similarity(mirrored, moved)[2]) < 1e-2


def test_the_image_moves_with_its_points(
    tiny: MorphableModel, store: FaceStore, plain_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pixel says where it was: at every point the crop shows the place that the point had in the store."""
    side = torch.arange(CROP) + 0.5
    ramp = torch.stack([side.expand(CROP, CROP), side[:, None].expand(CROP, CROP), torch.zeros(CROP, CROP)]) / CROP
    stored = FaceStore.__getitem__
    monkeypatch.setattr(FaceStore, "__getitem__", lambda self, k: replace(stored(self, k), crop=ramp, mask=ramp[0]))
    augmented = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(range(12))
    names = [row.photo for row in store.faces]
    mesh = mirror_mesh(tiny)
    for k, name in enumerate(augmented.names):
        record = stored(store, names.index(name))
        shown = _at(augmented.images[k, :2], augmented.gt_px[k]) * CROP
        mask = _at(augmented.mask[k : k + 1], augmented.gt_px[k])[:, 0] * CROP
        inside = ((augmented.gt_px[k] > 1) & (augmented.gt_px[k] < CROP - 1)).all(1)
        # A mirrored point of the right side lies where its twin of the left side was.
        errors = [
            (shown - points)[inside].abs().max() for points in (record.landmarks468_px, record.landmarks468_px[mesh])
        ]
        assert min(errors) < 0.3, (k, errors)
        torch.testing.assert_close(mask, shown[:, 0], atol=1e-3, rtol=0)


def _at(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    grid = (points / image.shape[-1] * 2 - 1)[None, None]
    return torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0, :, 0].T


def test_fits_move_with_the_crop(plain_images: None, tmp_path: Path) -> None:
    """The fit of a stored crop, turned, shifted and mirrored with it, projects to the points that moved with it."""
    model = load_model()
    folder = write_store(model, tmp_path / "store", splits={"train": 2})
    gt = SyntheticFaces(model, size=CROP, seed=5).render(range(2))
    assert gt.gt is not None
    faces = gt.gt.coefficients(gt.camera)
    smaller = replace(faces, identity=0.5 * faces.identity)
    fits = {f"{k:08d}": StoredFit(smaller[k : k + 1], faces[k : k + 1]) for k in range(2)}
    augmented = PhotoFaces(
        FaceStore(str(folder), split="train"), model, size=CROP, seed=0, augment=True, fits=fits
    ).batch(range(12))
    assert augmented.gt is not None
    assert augmented.landmark_fits is not None
    assert augmented.photo_count == 0
    names = [name.removesuffix(".jpg") for name in augmented.names]
    twins = 0
    for k, name in enumerate(names):
        one = slice(k, k + 1)
        face, camera = augmented.gt[one].coefficients(augmented.camera[one]), augmented.camera[one]
        points = model.mediapipe_points(model.vertices(face.identity, face.expression))
        off = (camera.project(face.pose.to_camera(points)) - augmented.gt_px[one]).norm(dim=-1)
        assert float(off.max()) < 0.05
        mirrored = not torch.allclose(face.identity, fits[name].full.identity, atol=1e-4)
        twins += mirrored
        torch.testing.assert_close(augmented.landmark_fits[one].identity, 0.5 * face.identity)
        assert _brightness(model, face) == pytest.approx(_brightness(model, fits[name].full), rel=0.01)
    assert 0 < twins < 12


def test_faces_without_a_fit_are_left_out(tiny: MorphableModel, tmp_path: Path) -> None:
    model = load_model()
    store = FaceStore(str(write_store(model, tmp_path / "store", splits={"train": 2})), split="train")
    face = FaceCoefficients.mean(identity=model.counts[0], expression=model.counts[1], albedo=model.counts[2])
    fits = {"00000001": StoredFit(face, face)}
    batch = PhotoFaces(store, model, size=CROP, seed=0, augment=False, fits=fits).batch(range(2))
    assert set(batch.names) == {"00000001.jpg"}
    with pytest.raises(ConfigError, match="symmetric"):
        PhotoFaces(store, tiny, size=CROP, seed=0, augment=False, fits=fits)
    with pytest.raises(ConfigError, match="no faces"):
        PhotoFaces(store, model, size=CROP, seed=0, augment=False, fits={})


def _brightness(model: MorphableModel, face: FaceCoefficients) -> float:
    """Mean shading, which stays the same if the light turns with the head."""
    normals = vertex_normals(model.vertices(face.identity, face.expression), model.triangles)
    return float(shading(normals @ face.pose.rotmat().mT, face.lighting).mean())


def test_jitter_scales_shift_and_size_of_the_window_and_not_its_roll(tiny: MorphableModel, store: FaceStore) -> None:
    """Measured on a face whose box is 20 pixels wide, so that the crop's side is 32."""
    points = torch.tensor([[10.0, 12.0], [30.0, 12.0], [20.0, 28.0]]).repeat(156, 1)
    corners = {}
    for jitter in (0.0, 1.0, 2.0):
        faces = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True, jitter=jitter)
        crops = [faces._window(points, np.random.default_rng(k)) for k in range(300)]
        rolls = np.array([float(torch.atan2(c.photo_from_crop[1, 0], c.photo_from_crop[0, 0])) for c in crops])
        assert rolls.std() == pytest.approx(0.3, rel=0.1)
        sides = np.array([float(c.photo_from_crop[:2, 0].norm()) * CROP for c in crops])
        corners[jitter] = sides, np.array([c.to_crop(torch.tensor([[20.0, 20.0]])).tolist()[0] for c in crops])
    sides, middles = corners[0.0]
    assert sides.min() >= 1.6 * 15 and sides.max() <= 1.6 * 26  # the box of the turned points
    still = corners[0.0][1]
    for jitter in (1.0, 2.0):
        ratio = np.log(corners[jitter][0] / sides)
        assert ratio.std() == pytest.approx(0.05 * jitter, rel=0.15)
        assert ratio.mean() == pytest.approx(0, abs=0.015)
        shift = (corners[jitter][1] - CROP / 2) - (still - CROP / 2) / np.exp(ratio)[:, None]
        assert (shift / CROP).std(0).tolist() == pytest.approx([0.03 * jitter] * 2, rel=0.15)
    assert np.abs(middles.mean(0) - CROP / 2).max() < 2


def test_without_augmentation_the_crop_is_the_face_crop(tiny: MorphableModel, store: FaceStore) -> None:
    batch = PhotoFaces(store, tiny, size=CROP, seed=0, augment=False).batch(range(COUNT))
    low, high = batch.gt_px.amin(1), batch.gt_px.amax(1)
    torch.testing.assert_close((high - low).amax(-1), torch.full((COUNT,), CROP / 1.6), atol=1e-3, rtol=0)
    torch.testing.assert_close((low + high) / 2, torch.full((COUNT, 2), CROP / 2), atol=1e-3, rtol=0)
    assert batch.gt is None and batch.photo_count == COUNT


def test_occluders_hide_skin_in_image_and_mask(
    tiny: MorphableModel, store: FaceStore, monkeypatch: pytest.MonkeyPatch, plain_images: None
) -> None:
    def red_lower_half(rng: np.random.Generator, frame: object) -> list[Occluder]:
        opacity = torch.zeros(CROP, CROP)
        opacity[CROP // 2 :] = 1.0
        return [Occluder(torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, CROP, CROP), opacity)]

    free = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(NUMBERS)
    monkeypatch.setattr(module, "sample_occluders", red_lower_half)
    monkeypatch.setattr(module, "OCCLUDED_SHARE", 1.0)
    hidden = PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(NUMBERS)
    half = CROP // 2
    assert (hidden.mask[:, half:] == 0).all()
    assert (hidden.images[:, 0, half:] == 1).all() and (hidden.images[:, 1:, half:] == 0).all()
    assert torch.equal(hidden.mask[:, :half], free.mask[:, :half])
    assert torch.equal(hidden.images[:, :, :half], free.images[:, :, :half])
    assert free.mask[:, half:].mean() > 0.1


def test_augmentation_touches_three_in_ten_with_occluders_and_six_in_ten_with_backgrounds(
    tiny: MorphableModel, store: FaceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"background": 0, "occluders": 0, "camera": 0}

    def count(name: str, value: object) -> object:
        calls[name] += 1
        return value

    monkeypatch.setattr(module, "replace_background", lambda rng, image, frame: count("background", image))
    monkeypatch.setattr(module, "sample_occluders", lambda rng, frame: count("occluders", []))
    monkeypatch.setattr(module, "simulate_camera", lambda rng, image: count("camera", image))
    PhotoFaces(store, tiny, size=CROP, seed=0, augment=True).batch(range(200))
    assert calls["camera"] == 200
    assert calls["background"] / 200 == pytest.approx(0.6, abs=0.08)
    assert calls["occluders"] / 200 == pytest.approx(0.3, abs=0.08)
    PhotoFaces(store, tiny, size=CROP, seed=0, augment=False).batch(range(8))
    assert calls["camera"] == 200


def test_every_epoch_has_every_face_once_in_an_order_of_its_own(tiny: MorphableModel, store: FaceStore) -> None:
    """A store's order is that of file names: of CACD's, every batch would hold people of one age."""
    orders = [tuple(epoch_order(0, epoch, 6)) for epoch in range(4)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) == 4
    assert tuple(epoch_order(1, 0, 6)) != orders[0]

    def names(numbers: range, *, augment: bool) -> tuple[str, ...]:
        return PhotoFaces(store, tiny, size=CROP, seed=0, augment=augment).batch(numbers).names

    stored = tuple(row.photo for row in store.faces)
    epochs = [names(range(k * COUNT, (k + 1) * COUNT), augment=False) for k in range(3)]
    assert all(sorted(epoch) == sorted(stored) for epoch in epochs)
    assert len(set(epochs)) > 1
    assert names(range(COUNT), augment=True) == epochs[0]


def test_a_crop_is_a_function_of_its_number(tiny: MorphableModel, store: FaceStore) -> None:
    def batch(*numbers: int, seed: int = 0) -> FaceBatch:
        return PhotoFaces(store, tiny, size=CROP, seed=seed, augment=True).batch(numbers)

    assert torch.equal(batch(5, 9).images[1:], batch(9).images)
    assert not torch.equal(batch(9).images, batch(9, seed=1).images)


def test_a_split_without_faces_is_refused(tiny: MorphableModel, store: FaceStore) -> None:
    empty = FaceStore(store.address, split="test")
    with pytest.raises(ConfigError, match="no faces in this split"):
        PhotoFaces(empty, tiny, size=CROP, seed=0, augment=False)
