"""Train the occluder head of the mesh network, `src/mien/assets/occluders.safetensors`:

    python models/train_occluders.py PHOTOS_CCBY PORTRAITS_PD out/occluders

Portraits under CC-BY 4.0, CC0 or in the public domain, with occluders drawn on them (`occluder_drawing.py`). Nobody who
is shown in demonstrations and tests is among them, nobody below 18, and no person of `HELD_OUT`: the figures of
docs/perception.md are measured on those. Four minutes to draw and a quarter of an hour to learn, of processor time.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from occluder_drawing import SIZE, Scene, covered, filled, grown, made_up, photographed
from record_asset import save_asset

from mien.io.photo import read_photo
from mien.morphable.landmark_tables import MEDIAPIPE_BROWS, MEDIAPIPE_CHEEKS, MEDIAPIPE_EYES, MEDIAPIPE_LIPS
from mien.perception import FaceDetection, FaceDetector, FaceMesh, face_crop, face_parts
from mien.perception.fused import Program
from mien.perception.layers import PointwiseConv2d
from mien.perception.occluder_head import MAP_SIZE, OccluderHead
from mien.perception.windows import PhotoPyramid, normalise_exposure, window_matrix

SHOWN = frozenset(f"london_{number}" for number in ("012", "037", "099", "119", "136"))
"""People in demonstrations and tests, as in encoder_portraits.py."""
HELD_OUT = 5
"""Every fifth of the other people, in the order of their names, is kept for measurements."""
ADULT = 18
WINDOW_SCALE = 1.5
"""As in `mien.perception.detector`."""
EYE_ZONE = (27, 28, 29, 30, 247, 226, 25, 110, 24, 23, 22, 26, 112, 243, 190, 56)
SAMPLES, BATCH, STEPS, RATE = 10000, 8, 3000, 4e-3
LICENCE = "Apache-2.0"
SOURCE = (
    "trained by mien (models/train_occluders.py) on CC-BY 4.0 portraits (DeBruine and Jones 2017, figshare 5047666 and "
    "4220517), CC0 self-portraits and public-domain portraits of members of the US Congress (bioguide.congress.gov, by "
    "way of voteview), with drawn occluders; reads features of MediaPipe's FaceMesh"
)


@dataclass(frozen=True)
class Portrait:
    """A photo with one face that nothing covers, or glasses at most."""

    pixels: np.ndarray
    face: FaceDetection
    skin: np.ndarray
    """(224, 224) visible skin in the crop of `face_crop`, without hair."""
    may_have_glasses: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ccby", type=Path, help="photos_ccby")
    parser.add_argument("congress", type=Path, help="portraits_pd")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    store = options.out / f"windows_{options.samples}.npy"
    if not store.exists():
        files = training_photos(options.ccby, options.congress)
        _draw_windows(_portraits(files), options.samples, store)
    head = _train(np.load(store, mmap_mode="r"), steps=options.steps, out=options.out)
    tensors = {name: value.half() for name, value in head.state_dict().items()}
    save_asset("occluders.safetensors", tensors, {"steps": str(options.steps)}, licence=LICENCE, source=SOURCE)


def training_photos(ccby: Path, congress: Path, *, held_out: bool = False) -> list[tuple[Path, bool]]:
    """Photos to learn from, or those that are held out, with whether their people may wear glasses."""
    rows = [row for row in manifest(ccby) if row["subject"] not in SHOWN and int(row["age"] or ADULT) >= ADULT]
    rank = {subject: k for k, subject in enumerate(sorted({row["subject"] for row in rows}))}
    kept = [row for row in rows if (rank[row["subject"]] % HELD_OUT == 0) == held_out]
    files = [(ccby / row["file"], False) for row in kept]
    portraits = [row["file"] for row in manifest(congress)]
    files += [(congress / "images" / n, True) for k, n in enumerate(portraits) if (k % HELD_OUT == 0) == held_out]
    return files


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _portraits(files: list[tuple[Path, bool]]) -> list[Portrait]:
    detector, found = FaceDetector(), []
    for path, may_have_glasses in files:
        pixels = read_photo(path).pixels
        faces = detector.detect(pixels)
        if len(faces) != 1 or np.ptp(faces[0].landmarks468_px[:, 0]) < 40:
            continue
        crop = face_crop(torch.from_numpy(faces[0].landmarks468_px[:, :2]))
        face = replace(faces[0], occluders=None)  # not what an earlier head saw
        skin = face_parts(pixels, face, crop).skin.numpy()
        found.append(Portrait(pixels, face, skin, may_have_glasses))
    print(f"{len(found)} portraits of {len(files)} photos", flush=True)
    return found


def _draw_windows(portraits: list[Portrait], count: int, path: Path) -> None:
    """Write windows, labels and weights as (count, 192, 192, 5) bytes; the last two have half the resolution twice."""
    rng = np.random.default_rng(0)
    clear = [k for k, portrait in enumerate(portraits) if not portrait.may_have_glasses]
    store = np.lib.format.open_memmap(
        path.with_suffix(".part"), "w+", np.uint8, (count, SIZE * SIZE * 3 + 2 * MAP_SIZE**2)
    )
    start = time.monotonic()
    for k in range(count):
        # The CC-BY photos are sharp, and few: as many samples as of the others.
        index = clear[rng.integers(len(clear))] if rng.random() < 0.5 else int(rng.integers(len(portraits)))
        window, label, weight = draw_sample(portraits[index], portraits[rng.integers(len(portraits))], rng)
        store[k] = np.concatenate([part.ravel() for part in (window, label, weight)])
        if k % 500 == 499:
            print(f"{k + 1} windows, {time.monotonic() - start:.0f} s", flush=True)
    store.flush()
    path.with_suffix(".part").rename(path)


def draw_sample(
    portrait: Portrait, other: Portrait, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One window (192, 192, 3), its label and the weight of each pixel of the label (96, 96), all in bytes."""
    points = portrait.face.landmarks468_px[:, :2]
    right, left = points[33], points[263]
    extent = float(np.ptp(points, axis=0).max())
    angle = math.atan2(*(left - right)[::-1]) + rng.normal(0, 0.06)
    centre = (points.min(0) + points.max(0)) / 2 + rng.normal(0, 0.03, 2) * extent
    side = extent * WINDOW_SCALE * rng.uniform(0.92, 1.12)
    matrix = window_matrix(centre, side, SIZE, angle=angle)
    device = torch.device("cpu")
    picture, inside = PhotoPyramid(portrait.pixels, device=device).sample(matrix, SIZE)
    linear = np.linalg.inv(matrix[:, :2])
    mesh = (points - matrix[:, 2]) @ linear.T
    scene = Scene(picture.permute(1, 2, 0).numpy(), mesh, _texture(other, rng), _cheek(other, portrait, rng))
    scene = made_up(scene, rng)
    drawn, opacity, glare = covered(scene, rng)
    drawn = photographed(drawn, rng, sharpest=side)
    known = _known_skin(portrait, matrix, mesh)
    weight = np.maximum(known, opacity) * (glare < 0.3) * inside.numpy()
    weight *= 1 - 0.8 * ((opacity > 0.15) & (opacity < 0.85))
    window = torch.from_numpy(drawn).permute(2, 0, 1)[None]
    window = normalise_exposure(window, inside[None])[0].permute(1, 2, 0).numpy() * inside.numpy()[..., None]
    label, weight = (_halved(values) for values in (opacity, weight))
    if rng.random() < 0.5:
        window, label, weight = window[:, ::-1], label[:, ::-1], weight[:, ::-1]
    return _bytes(window), _bytes(label), _bytes(weight)


def _known_skin(portrait: Portrait, matrix: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Where nothing but skin, eyes, brows and mouth can be, 0 or 1; glasses are not marked in some of the portraits."""
    crop = face_crop(torch.from_numpy(portrait.face.landmarks468_px[:, :2]))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    photo = np.stack([x, y], -1) @ matrix[:, :2].T + matrix[:, 2]
    places = crop.to_crop(torch.from_numpy(photo)).float() * (2 / crop.size) - 1
    skin = F.grid_sample(torch.from_numpy(portrait.skin)[None, None], places[None], align_corners=False)[0, 0].numpy()
    features = filled([mesh[list(part)] for part in (*MEDIAPIPE_EYES, MEDIAPIPE_LIPS, *MEDIAPIPE_BROWS)])
    known = ((skin > 0.5) | (features > 0.5)).astype(np.float32)
    if portrait.may_have_glasses:
        zones = [mesh[list(eye)] for eye in MEDIAPIPE_EYES]
        bridge = mesh[[33, 6, 263, 168]]
        known *= 1 - filled([*(grown(zone, 2.6) for zone in zones), bridge])
    return known


def _texture(portrait: Portrait, rng: np.random.Generator) -> np.ndarray:
    """A random piece of a photo."""
    height, width = portrait.pixels.shape[:2]
    side = min(height, width) * rng.uniform(0.15, 0.6)
    centre = rng.uniform([side / 2, side / 2], [width - side / 2, height - side / 2])
    matrix = window_matrix(centre, side, SIZE, angle=rng.uniform(0, 2 * np.pi))
    return (
        PhotoPyramid(portrait.pixels, device=torch.device("cpu"))
        .sample(matrix, SIZE, padding="border")[0]
        .permute(1, 2, 0)
        .numpy()
    )


def _cheek(other: Portrait, own: Portrait, rng: np.random.Generator) -> np.ndarray:
    """Skin of a cheek, mostly of the same person, over a whole window."""
    portrait = own if rng.random() < 0.7 else other
    points = portrait.face.landmarks468_px[list(MEDIAPIPE_CHEEKS[rng.integers(2)]), :2]
    side = np.ptp(points, axis=0).min()
    matrix = window_matrix(points.mean(0), side, SIZE, angle=rng.uniform(0, 2 * np.pi))
    return (
        PhotoPyramid(portrait.pixels, device=torch.device("cpu"))
        .sample(matrix, SIZE, padding="border")[0]
        .permute(1, 2, 0)
        .numpy()
    )


def _halved(values: np.ndarray) -> np.ndarray:
    return values.reshape(MAP_SIZE, 2, MAP_SIZE, 2).mean((1, 3))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _train(store: np.ndarray, *, steps: int, out: Path) -> OccluderHead:
    head, trunk = OccluderHead().to(memory_format=torch.channels_last), _trunk()
    for module in head.modules():
        if isinstance(module, PointwiseConv2d):  # whose own way is fast forwards, but not backwards
            module.forward = functools.partial(torch.nn.Conv2d.forward, module)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    last = max(len(store) // 40, BATCH)  # measured on, not learned from
    start = time.monotonic()
    for step, batch in enumerate(_batches(len(store) - last, steps)):
        pictures, labels, weights = _unpacked(store[batch])
        loss = _loss(head(trunk.run(pictures)), labels, weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499 or step == steps - 1:
            print(
                f"step {step + 1}, {time.monotonic() - start:.0f} s: {_measured(head, trunk, store[-last:])}",
                flush=True,
            )
            torch.save(head.state_dict(), out / "head.pt")
    return head


def _trunk() -> Program:
    """The mesh network up to the maps that the head reads."""
    program, mesh = Program(3, SIZE), FaceMesh.from_assets()
    return program.give(*mesh.add_trunk(program)[1])


def _batches(count: int, steps: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    order = np.empty(0, int)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(count)
        batch, order = np.sort(order[:BATCH]), order[BATCH:]
        yield batch


def _unpacked(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.from_numpy(np.array(rows)).float() / 255
    pictures, labels, weights = values.split([3 * SIZE * SIZE, MAP_SIZE**2, MAP_SIZE**2], dim=1)
    pictures = pictures.unflatten(1, (SIZE, SIZE, 3)).permute(0, 3, 1, 2)
    return pictures, labels.unflatten(1, (MAP_SIZE, -1)), weights.unflatten(1, (MAP_SIZE, -1))


def _loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and the overlap of each sample (Dice), which keeps small occluders."""
    entropy = (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights).sum() / weights.sum()
    found = logits.sigmoid() * weights
    common, sizes = (found * labels).sum((1, 2)), found.sum((1, 2)) + (labels * weights).sum((1, 2))
    return entropy + 0.3 * (1 - (2 * common + 20) / (sizes + 20)).mean()


@torch.no_grad()
def _measured(head: OccluderHead, trunk: Program, rows: np.ndarray) -> str:
    head.eval()
    hit = total = false = clear = 0.0
    for k in range(0, len(rows), BATCH):
        pictures, labels, weights = _unpacked(rows[k : k + BATCH])
        found = head(trunk.run(pictures)) > 0
        sure = weights > 0.9
        hit += float((found & sure & (labels > 0.9)).sum())
        total += float((sure & (labels > 0.9)).sum())
        false += float((found & sure & (labels < 0.1)).sum())
        clear += float((sure & (labels < 0.1)).sum())
    head.train()
    return f"recall {hit / total:.4f}, false {false / clear:.4f}"


if __name__ == "__main__":
    main()
