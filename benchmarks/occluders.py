"""Are masks, glasses, hands and hair in front of a face left out, and is the face the same as without them?

python benchmarks/occluders.py --data ../shared/data [--people 6] [--fits 3] [--clear 80] [--sheet sheet.png]

Draws each kind of occluder on portraits of people that the occluder head has not learnt from: those in demonstrations,
and the held-out ones of photos_ccby. Then counts pixels that are taken for occluders in photos without any, and fits
some of the covered faces.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from lids import SETS
from occluder_pictures import KINDS, Covered, draw
from PIL import Image
from rich.console import Console
from rich.progress import track
from skimage.color import deltaE_ciede2000, rgb2lab

from mien.errors import FaceDoubtful
from mien.evaluation.landmarks import read_annotated
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.geometry import align_points
from mien.io.photo import read_photo
from mien.perception import Crop, FaceDetector, FaceParts, face_crop, face_parts
from mien.perception.crops import sample_pixels
from mien.pipeline import Reconstructor
from mien.quality import COVERED_ABOVE
from mien.result import Reconstruction

sys.path.append(str(Path(__file__).parent.parent / "models"))
from train_occluders import SHOWN, manifest, training_photos


@dataclass(frozen=True)
class Found:
    """What one kind of occluder did to the masks of some portraits."""

    kind: str
    faces: int
    lost: int
    """Faces that the detector no longer found."""
    flagged: int
    """Faces that were flagged as covered."""
    recall: float
    """Share of the occluder's pixels on the face that are not taken for skin."""
    recall_outline: float
    """Share that is left out of the texture too, as covered or outside the face."""
    kept: float
    """Share of the visible skin that still counts as skin."""


@dataclass(frozen=True)
class Clear:
    """What was found in photos without drawn occluders."""

    photos: str
    faces: int
    flagged: int
    """Faces flagged as covered."""
    touched: int
    """Faces with any pixel taken for an occluder."""
    share: float
    """Mean share of the face taken for an occluder."""


@dataclass(frozen=True)
class Fitted:
    """How a covered face differs from the same face without the occluder: medians over people."""

    kind: str
    mode: str
    faces: int
    albedo: float
    """ΔE2000 of the model's albedo at the covered vertices, mean colour."""
    texture: float
    """ΔE2000 of the completed texture there, mean of the vertices."""
    shape_mm: float
    """Mean distance of the vertices without expression, after rigid alignment."""


def people(data: Path, count: int) -> list[Path]:
    """Portraits of people that nothing was learnt from: demonstrations first."""
    demo = sorted((data / "demo").glob("portrait_*.jpg"))
    held_out = [
        path
        for path, glasses in training_photos(data / "photos_ccby", data / "portraits_pd", held_out=True)
        if not glasses
    ]
    return (demo + held_out)[:count]


def in_crop(values: np.ndarray, crop: Crop) -> Float[np.ndarray, "S S"]:
    """Sample a map of the photo's size."""
    picture = np.repeat(np.rint(values * 255).astype(np.uint8)[..., None], 3, 2)
    return sample_pixels(picture, crop)[0, 0].numpy()


@dataclass
class _Tally:
    faces: int = 0
    lost: int = 0
    flagged: int = 0
    hit: float = 0.0
    hit_outline: float = 0.0
    drawn: float = 0.0
    kept: float = 0.0
    skin: float = 0.0

    def add(self, before: FaceParts, after: FaceParts, opacity: np.ndarray) -> None:
        drawn = (opacity > 0.5) & (before.oval.numpy() > 0.5) & (before.skin.numpy() > 0.5)
        clear = (opacity < 0.05) & (before.skin.numpy() > 0.5)
        self.faces += 1
        self.flagged += after.covered_shares.face > COVERED_ABOVE or "eyes" in after.covered_shares.parts
        self.drawn += drawn.sum()
        self.hit += (after.skin.numpy() < 0.5)[drawn].sum()
        self.hit_outline += (after.face.numpy() < 0.5)[drawn].sum()
        self.skin += clear.sum()
        self.kept += (after.skin.numpy() > 0.5)[clear].sum()

    def row(self, kind: str) -> Found:
        drawn, skin = max(self.drawn, 1), max(self.skin, 1)
        return Found(
            kind, self.faces, self.lost, self.flagged, self.hit / drawn, self.hit_outline / drawn, self.kept / skin
        )


def measure_masks(paths: Sequence[Path], detector: FaceDetector, *, sheet: Path | None) -> list[Found]:
    tallies, rows = {kind: _Tally() for kind in KINDS}, []
    for seed, path in enumerate(track(paths, description="masks", console=Console(stderr=True))):
        pixels = read_photo(path).pixels
        face = detector.detect(pixels, max_faces=1)[0]
        crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
        before, row = face_parts(pixels, face, crop), []
        for kind, tally in tallies.items():
            covered = draw(kind, pixels, face.landmarks468_px, seed=seed)
            found = detector.detect(covered.pixels, max_faces=1)
            if not found:
                tally.lost += 1
                continue
            after = face_parts(covered.pixels, found[0], crop)
            tally.add(before, after, in_crop(covered.opacity, crop))
            row.append(_tile(covered, after, crop))
        rows.append(row)
    if sheet is not None:
        width = max(len(row) for row in rows)
        blank = np.zeros_like(rows[0][0])
        picture = np.concatenate([np.concatenate([*row, *[blank] * (width - len(row))], 1) for row in rows[:12]], 0)
        Image.fromarray(picture).save(sheet)
    return [tally.row(kind) for kind, tally in tallies.items()]


def _tile(covered: Covered, after: FaceParts, crop: Crop) -> np.ndarray:
    """The picture above, what is taken for skin below, with the covered part in red."""
    picture = sample_pixels(covered.pixels, crop)[0].permute(1, 2, 0).numpy()
    skin, hidden = after.skin.numpy()[..., None], after.covered.numpy()[..., None]
    shown = picture * (0.3 + 0.7 * skin) * (1 - 0.5 * hidden) + 0.5 * hidden * np.array([1.0, 0, 0])
    return np.rint(np.concatenate([picture, shown], 0)[:, 30:194] * 255).astype(np.uint8)


def measure_clear(groups: dict[str, Sequence[Path]], detector: FaceDetector) -> list[Clear]:
    rows = []
    for name, paths in groups.items():
        shares = []
        for path in track(paths, description=name, console=Console(stderr=True)):
            pixels = read_photo(path).pixels
            for face in detector.detect(pixels, max_faces=1):
                crop = face_crop(torch.from_numpy(face.landmarks468_px[:, :2]))
                shares.append(face_parts(pixels, face, crop).covered_shares.face)
        found = np.array(shares)
        rows.append(
            Clear(name, len(found), int((found > COVERED_ABOVE).sum()), int((found > 0).sum()), float(found.mean()))
        )
    return rows


def measure_fits(
    paths: Sequence[Path], kinds: Iterable[str], modes: Sequence[str], detector: FaceDetector
) -> list[Fitted]:
    rows = []
    for mode in modes:
        reconstructor = Reconstructor(mode=mode, max_faces=1)
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for seed, path in enumerate(track(paths, description=f"fits, mode {mode}", console=Console(stderr=True))):
            pixels = read_photo(path).pixels
            face = detector.detect(pixels, max_faces=1)[0]
            before = reconstructor(pixels)[0]
            for kind in kinds:
                covered = draw(kind, pixels, face.landmarks468_px, seed=seed)
                found[kind].append(differences(before, reconstructor(covered.pixels)[0], covered.opacity))
        for kind, values in found.items():
            rows.append(Fitted(kind, mode, len(values), *np.median(np.array(values), 0).tolist()))
    return rows


def differences(before: Reconstruction, after: Reconstruction, opacity: np.ndarray) -> tuple[float, float, float]:
    """ΔE of albedo and texture at the covered vertices, and the distance of the shapes in mm."""
    height, width = opacity.shape
    column, row = before.xy.T.astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hidden = inside & before.visible
    hidden &= opacity[row.clip(0, height - 1), column.clip(0, width - 1)] > 0.5
    albedo = [rgb2lab(face.vertex_albedo[hidden].mean(0)) for face in (before, after)]
    texture = [rgb2lab(_texture_at_vertices(face)[hidden]) for face in (before, after)]
    shapes = [torch.from_numpy(face.vertices_model.astype(np.float64))[None] for face in (before, after)]
    moved = align_points(shapes[1], shapes[0], rigid=True)(shapes[1])
    distance = float((moved - shapes[0]).norm(dim=-1).mean()) * 1000
    return float(deltaE_ciede2000(*albedo)), float(deltaE_ciede2000(*texture).mean()), distance


def _texture_at_vertices(face: Reconstruction) -> Float[np.ndarray, "V 3"]:
    size = len(face.texture)
    column, row = (face.uv * [size, -size] + [0, size]).astype(int).clip(0, size - 1).T
    return face.texture[row, column]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with demo, photos_ccby, portraits_pd, photos_68"
    )
    parser.add_argument("--people", type=int, default=6, help="portraits that are drawn on")
    parser.add_argument("--fits", type=int, default=3, help="portraits that are fitted")
    parser.add_argument("--modes", nargs="*", default=["auto"])
    parser.add_argument("--fit-kinds", nargs="*", default=["blue mask", "mask in skin colour", "sunglasses", "hand"])
    parser.add_argument("--clear", type=int, default=80, help="photos per group without occluders; 0 for none")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="picture of what was drawn and found")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    warnings.simplefilter("ignore", FaceDoubtful)
    data, detector = options.data, FaceDetector()
    portraits = people(data, max(options.people, options.fits))
    print(f"{Environment.current()}\n")
    found = measure_masks(portraits[: options.people], detector, sheet=options.sheet) if options.people else []
    if found:
        header = ["drawn", "faces", "lost", "flagged", "not skin", "not in texture", "skin kept"]
        shares = [[f"{100 * v:.1f} %" for v in (f.recall, f.recall_outline, f.kept)] for f in found]
        cells = [[f.kind, f.faces, f.lost, f.flagged, *own] for f, own in zip(found, shares, strict=True)]
        print(markdown_table(header, cells))
    clear = measure_clear(clear_groups(data, options.clear), detector) if options.clear else []
    if clear:
        rows = [[c.photos, c.faces, c.flagged, c.touched, f"{100 * c.share:.2f} %"] for c in clear]
        print("\n" + markdown_table(["photos without occluders", "faces", "flagged", "touched", "mean share"], rows))
    fits = measure_fits(portraits[: options.fits], options.fit_kinds, options.modes, detector) if options.fits else []
    if fits:
        rows = [[f.kind, f.mode, f.faces, f"{f.albedo:.1f}", f"{f.texture:.1f}", f"{f.shape_mm:.2f}"] for f in fits]
        print("\n" + markdown_table(["drawn", "mode", "faces", "ΔE of albedo", "ΔE of texture", "shape, mm"], rows))
    if options.json:
        write_json(options.json, environment=Environment.current(), results=[*found, *clear, *fits])
    return 0


def clear_groups(data: Path, count: int) -> dict[str, Sequence[Path]]:
    """Photos without occluders; glasses, hands and hats do occur in the last ones."""
    ccby, congress = data / "photos_ccby", data / "portraits_pd"
    held_out = training_photos(ccby, congress, held_out=True)
    shown = [ccby / row["file"] for row in manifest(ccby) if row["subject"] in SHOWN]
    groups = {
        "photos_ccby, held out and shown": [*shown, *(path for path, glasses in held_out if not glasses)],
        "portraits_pd, held out (many with glasses)": [path for path, glasses in held_out if glasses],
        "scans_dev": sorted((data / "scans_dev" / "photos").rglob("*.jpg")),
        "photos_68 (some are covered)": [p.path for name in SETS for p in read_annotated(data / "photos_68" / name)],
    }
    return {name: paths[:: max(1, len(paths) // count)][:count] for name, paths in groups.items() if paths}


if __name__ == "__main__":
    sys.exit(main())
