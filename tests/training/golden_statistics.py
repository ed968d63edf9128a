"""Statistics of everything that is sampled for training, for `test_golden_statistics`.

`python -m tests.training.golden_statistics` writes `tests/golden/training_statistics.json` anew. Do that only after a
change that is meant to alter the samples: stores, resumed runs and the packaged networks depend on them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mien.morphable import load_model
from mien.texture import TexelAtlas
from mien.training.data.augment import FaceFrame, compose_scene, replace_background, sample_occluders, uneven_light
from mien.training.data.camera_simulation import simulate_camera
from mien.training.data.photos import PhotoFaces
from mien.training.data.store import FaceStore
from mien.training.synthetic.detailed_faces import DETAIL_VIEW, DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces
from mien.training.synthetic.population import Population, SkinBank
from mien.training.synthetic.relief import ReliefPainter, ReliefSettings
from tests.tiny import tiny_model
from tests.training.tiny_data import CROP, write_store

GOLDEN = Path(__file__).parent.parent / "golden" / "training_statistics.json"
FRAME = 48
Statistics = dict[str, list[float]]


def moments(values: torch.Tensor | np.ndarray) -> list[float]:
    """Mean, standard deviation, signed cubic mean, least and greatest value, all in the unit of the values."""
    flat = np.asarray(values, np.float64).ravel()
    return [float(v) for v in (flat.mean(), flat.std(), np.cbrt((flat**3).mean()), flat.min(), flat.max())]


def generators(count: int, *, series: int) -> list[np.random.Generator]:
    return [np.random.default_rng((series, number)) for number in range(count)]


def face_points() -> torch.Tensor:
    """468 points of a schematic frontal face in an image of `FRAME` pixels."""
    points = torch.full((468, 2), FRAME / 2)
    for index, x, y in (
        (10, 24, 12), (152, 24, 38), (234, 14, 24), (454, 34, 25), (33, 17, 21), (133, 22, 21), (362, 26, 21),
        (263, 31, 22),
    ):  # fmt: skip
        points[index] = torch.tensor([float(x), float(y)])
    return points


def population() -> Statistics:
    model = load_model()
    offsets = torch.stack([torch.full_like(model.mean, 0.1), model.mean * torch.tensor([1.0, 0.5, 0.2])])
    bank = SkinBank(torch.stack([torch.ones(model.counts[2]), -torch.ones(model.counts[2])]), offsets)
    settings = {"plain": (None, 1.0, None), "skins": (bank, 0.2, None), "detail": (None, 1.0, DETAIL_VIEW)}
    found: Statistics = {}
    for name, (skins, jitter, view) in settings.items():
        sampler = Population(model, size=64, skins=skins, jitter=jitter, view=view)
        samples = sampler.sample_faces(generators(120, series=1))
        face = samples.coefficients
        found |= {
            f"population.{name}.{part}": moments(value)
            for part, value in (
                ("identity", face.identity), ("albedo", face.albedo), ("expression", face.expression),
                ("pitch", face.pose.rotation[:, 0]), ("yaw", face.pose.rotation[:, 1]),
                ("roll", face.pose.rotation[:, 2]), ("x", face.pose.translation[:, 0]),
                ("y", face.pose.translation[:, 1]), ("distance", face.pose.translation[:, 2]),
                ("ambient", face.lighting[:, 0]), ("light_y", face.lighting[:, 1]), ("light_z", face.lighting[:, 2]),
                ("light_x", face.lighting[:, 3]), ("albedo_offset", samples.albedo_offset),
                ("focal_px", samples.camera.focal_px), ("centre_px", samples.camera.centre_px),
            )
        }  # fmt: skip
    return found


def augmentation() -> Statistics:
    points, ramp = face_points(), torch.linspace(0.2, 0.9, FRAME).expand(3, FRAME, FRAME)
    frame = FaceFrame.of(points, FRAME)
    face = torch.stack([0.8 * ramp[0], 0.6 * ramp[1], 0.5 * ramp[2]])
    inside = (frame.u.square() + frame.v.square() < 1).float()
    portrait = torch.lerp(torch.full_like(ramp, 0.8), face, inside)
    scenes = [compose_scene(rng, face, inside, points) for rng in generators(60, series=2)]
    occluders = [sample_occluders(rng, frame) for rng in generators(60, series=3)]
    found = {
        "augment.frame": moments(torch.stack([frame.u, frame.v])),
        "augment.scene": moments(torch.stack([image for image, _ in scenes])),
        "augment.mask": moments(torch.stack([mask for _, mask in scenes])),
        "augment.occluders": moments(torch.tensor([float(len(some)) for some in occluders])),
        "augment.opacity": moments(torch.stack([o.opacity for some in occluders for o in some])),
        "augment.background": moments(
            torch.stack([replace_background(rng, portrait, frame) for rng in generators(30, series=4)])
        ),
        "augment.light": moments(torch.stack([uneven_light(rng, ramp) for rng in generators(60, series=5)])),
    }
    images = torch.stack([simulate_camera(rng, face) for rng in generators(60, series=6)])
    found["camera.images"] = moments(images)
    found["camera.brightness"] = moments(images.mean((1, 2, 3)))
    found["camera.fine"] = moments((images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)))
    found["camera.colour"] = moments((images[:, 0] - images[:, 2]).mean((1, 2)))
    return found


def skin() -> Statistics:
    """Relief and blemishes by region; the settings make rare things frequent."""
    model = load_model()
    atlas = TexelAtlas.of(model, 64)
    frequent = ReliefSettings(flat_share=0.1, unblemished_share=0.1, bumps_share=0.8, pits_share=0.5, scar_share=0.5)
    painter = ReliefPainter(model, atlas, frequent)
    found: Statistics = {}
    maps = [painter.paint(rng, expression=None) for rng in generators(60, series=7)]
    height = torch.cat([one.displacement for one in maps])[:, 0] * 1000
    offset = torch.cat([one.texture_offset for one in maps])
    masks = model.masks
    regions = {"lips": masks.lips, "brows": masks.brows, "eyes": masks.eyes, "upper": (model.mean[:, 1] > 0).float()}
    for name, mask in regions.items():
        chosen = atlas.interpolate(mask[None, :, None])[0, 0] > 0.5
        found[f"skin.offset.{name}"] = moments(offset[:, :, chosen])
        found[f"skin.relief.{name}"] = moments(height[:, chosen])
    found |= {f"skin.offset.{k}": moments(offset[:, k]) for k in range(3)}
    found["skin.relief"] = moments(height)
    found["skin.deepest"] = moments(height.amin((1, 2)))
    for family in painter.families:
        total = np.zeros((64, 64), np.float32)
        active = dict.fromkeys([n + s for n in family.wrinkle.blendshapes for s in ("", "Left")], 0.7)
        for rng in generators(6, series=8):
            family.paint(rng, total, age=0.7, blendshapes=active, strength=1.0)
        found[f"wrinkles.{family.wrinkle.name}"] = moments(total / 6)
    return found


def streams() -> Statistics:
    """Images and masks as batches have them."""
    model = load_model()
    found: Statistics = {}
    stripes = (model.uv[:, :1] * 80).sin().expand(-1, 3) * torch.tensor([0.1, 0.05, 0.02])
    bank = SkinBank(torch.zeros(1, model.counts[2]), stripes[None].contiguous())
    synthetic = SyntheticFaces(model, size=FRAME, seed=3, skins=bank, pool=4).batch(range(8))
    detailed = DetailedFaces(model, size=FRAME, map_size=64, seed=3, skins=bank).batch(range(16))
    with tempfile.TemporaryDirectory() as folder:
        store = FaceStore(str(write_store(tiny_model(), Path(folder) / "store", splits={"train": 4})), split="train")
        photos = PhotoFaces(store, tiny_model(), size=CROP, seed=3, augment=True).batch(range(40))
    for name, batch in (("synthetic", synthetic), ("detailed", detailed), ("photos", photos)):
        found[f"{name}.images"] = moments(batch.images)
        found[f"{name}.mask"] = moments(batch.mask)
        found[f"{name}.points"] = moments(batch.gt_px)
        found[f"{name}.centre"] = moments(batch.camera.centre_px)
    assert detailed.maps is not None
    found["detailed.offset"] = moments(detailed.maps.texture_offset)
    found["detailed.displacement_mm"] = moments(1000 * detailed.maps.displacement)
    return found


GROUPS: dict[str, Callable[[], Statistics]] = {
    "population": population,
    "augmentation": augmentation,
    "skin": skin,
    "streams": streams,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    content = {group: make() for group, make in GROUPS.items()}
    lines = (f'"{group}": ' + "{\n" + ",\n".join(
        f"{json.dumps(name)}: {json.dumps([float(f'{v:.7g}') for v in values])}" for name, values in found.items()
    ) + "\n}" for group, found in content.items())  # fmt: skip
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
