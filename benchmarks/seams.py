"""Seams of textures: colours on both sides of the border of photo and completion, and of face and head; chroma of grey photos.

python benchmarks/seams.py --data ../shared/data [--mode net] [--limit N]

Takes the portraits of photos_ccby with templates: 142 adults and youths, frontal, of many skin tones. Colour differences are
CIE76, the distance in CIELAB (D65) of sRGB-encoded colours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from skimage.color import rgb2lab

from mien.errors import MienError
from mien.evaluation.report import Environment, markdown_table, write_json
from mien.export.head_looks import HeadLooks, head_looks
from mien.io.photo import read_photo
from mien.morphable import load_head
from mien.pipeline import Reconstructor
from mien.pipeline.texturing import TextureBuilder
from mien.result import Reconstruction
from mien.texture import CompletedTexture
from mien.texture.fill import box_mean
from mien.typing import Tensor

BAR = 2.0
"""Largest difference across a border, and largest chroma of a grey photo's head."""
PHOTO, COMPLETION = 0.95, 0.05
"""Shares of the photo from and up to which a texel counts as photo, and as completion."""
REACH = 64
"""Texels count up to the side of the map over this number, 3.5 mm on a face, from the middle between both sides."""


class RecordingBuilder(TextureBuilder):
    """Keeps the last completed texture, with the share of the photo in each texel."""

    last: CompletedTexture

    def _completed(self, *arguments: object, **keywords: object) -> CompletedTexture:
        self.last = super()._completed(*arguments, **keywords)  # pyright: ignore[reportArgumentType]
        return self.last


@dataclass(frozen=True)
class Seams:
    """Medians of CIE76 per portrait."""

    file: str
    photo: float
    """Across the border of photo and completion, on skin."""
    within: float
    """Across a line as long, inside the photo: what the face itself changes over that distance."""
    head_relit: float
    """Across the border of face and outer skin, in the relit look."""
    head_photo: float
    """The same in the photo's look."""
    grey_skin: float
    """Largest chroma in the skin's atlases of the grey photo, both looks."""
    grey_other: float
    """Largest chroma in its eyes, teeth, tongue, gums and mouth."""


def step_across(lab: Float[Tensor, "3 S S"], first: Float[Tensor, "S S"], second: Float[Tensor, "S S"]) -> float:
    """Median difference of the means of two areas around each texel on their border.

    Both means are moved to the border by the slope of each side, so that shading that goes on over it is no step.
    """
    size = lab.shape[-1]
    radius = max(size // REACH, 1)
    rows, columns = torch.meshgrid(torch.arange(size) / radius, torch.arange(size) / radius, indexing="ij")
    sides = [_local_plane(lab, area, rows, columns, radius=radius) for area in (first, second)]
    weights = [box_mean(area[None, None], radius=radius)[0, 0] for area in (first, second)]
    # Both sides fill at least an eighth of the square around a texel of the border.
    border = (weights[0] > 1 / 8) & (weights[1] > 1 / 8)
    if not bool(border.any()):
        return float("nan")
    return float((sides[0] - sides[1])[:, border].norm(dim=0).median())


def _local_plane(
    lab: Float[Tensor, "3 S S"], area: Float[Tensor, "S S"], rows: Tensor, columns: Tensor, *, radius: int
) -> Float[Tensor, "3 S S"]:
    """The value at each texel of the plane that fits an area around it best, with a little regularisation."""

    def mean(values: Tensor) -> Tensor:
        wide = values.double()[None]
        for _ in range(2):
            wide = box_mean(wide, radius=radius)
        return wide[0]

    total = mean(area[None]).clamp(min=1e-9)
    y, x = (mean((area * values)[None]) / total for values in (rows, columns))
    value = mean(area * lab) / total
    yy, xx, xy = (mean((area * a * b)[None]) / total for a, b in ((rows, rows), (columns, columns), (rows, columns)))
    yy, xx, xy = yy - y * y + 0.05, xx - x * x + 0.05, xy - x * y
    ly, lx = (mean(area * lab * values) / total - value * m for values, m in ((rows, y), (columns, x)))
    determinant = yy * xx - xy * xy
    slope_y, slope_x = (xx * ly - xy * lx) / determinant, (yy * lx - xy * ly) / determinant
    return value + slope_y * (rows - y) + slope_x * (columns - x)


def texture_seam(completed: CompletedTexture, skin: Float[Tensor, "S S"]) -> tuple[float, float]:
    """Across the border of photo and completion, and across a line within the photo."""
    lab = lab_of(completed.colours[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    share = completed.from_photo[0, 0].cpu()
    bare = (skin > PHOTO).float()
    photo, filled = (share > PHOTO).float() * bare, (share < COMPLETION).float() * bare
    inner = (box_mean(photo[None, None], radius=len(share) // REACH)[0, 0] > PHOTO).float()
    return step_across(lab, photo, filled), step_across(lab, inner, photo * (1 - inner))


def head_seam(pixels: Float[np.ndarray, "A A 3"], face: Reconstruction, reconstructor: Reconstructor) -> float:
    """Median difference of neighbouring triangles on both sides of the border of the face's map."""
    head = load_head(reconstructor.model)
    skin = head.part("skin")
    corners = skin.vertices[skin.triangles]
    count = len(face.vertices)
    outside = (skin.triangles >= count).all(1)  # of the atlas, in which the border's vertices stand twice
    on_seam = torch.isin(corners, head.seam).sum(1) == 2  # an edge
    edges: dict[tuple[int, ...], list[int]] = {}
    for triangle in on_seam.nonzero()[:, 0].tolist():
        edge = tuple(sorted(v for v in corners[triangle].tolist() if v in set(head.seam.tolist())))
        edges.setdefault(edge, []).append(triangle)
    pairs = [p for p in edges.values() if len(p) == 2 and bool(outside[p[0]]) != bool(outside[p[1]])]
    uv = head.skin_uv[skin.triangles].mean(1).numpy()
    size = len(pixels)
    lab = [
        lab_of(pixels[(size * (1 - uv[side, 1])).astype(int), (size * uv[side, 0]).astype(int)][None])[:, 0].T
        for side in np.array(pairs).T
    ]
    return float((lab[0] - lab[1]).norm(dim=1).median())


def lab_of(encoded: Float[np.ndarray, "H W 3"]) -> Float[Tensor, "3 H W"]:
    """CIELAB of sRGB-encoded colours."""
    return torch.from_numpy(rgb2lab(encoded.astype(np.float64))).permute(2, 0, 1).float()


def chroma(looks: HeadLooks) -> tuple[float, float]:
    """Largest chroma of the skin's and of the other images and colours."""

    def largest(encoded: np.ndarray) -> float:
        return float(lab_of(np.rint(encoded * 255) / 255)[1:].norm(dim=0).max())

    names = ("mouth", "tongue", "teeth", "gums")
    linear = np.array([colour(n) for n in names for colour in (looks.part_colour, looks.part_colour_in_photo)])
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    skin = max(largest(looks.relit), largest(looks.photo))
    return skin, max(largest(looks.eyes_relit), largest(looks.eyes_photo), largest(encoded[None]))


def measure(path: Path, reconstructor: Reconstructor, builder: RecordingBuilder) -> Seams:
    """Reconstruct a portrait, and its grey version.

    Raises:
        MienError: The photo cannot be reconstructed.
    """
    photo, model = read_photo(path), reconstructor.model
    head = load_head(model)
    skin = builder._masks.skin[0, 0]
    (face,) = reconstructor(photo)
    across, within = texture_seam(builder.last, skin)
    looks = head_looks(face, model, head, scalp="skin")
    seams = [head_seam(pixels, face, reconstructor) for pixels in (looks.relit, looks.photo)]
    luma = np.rint(photo.pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    (grey,) = reconstructor(replace(photo, pixels=np.repeat(luma[..., None], 3, axis=2)))
    grey_chroma = chroma(head_looks(grey, model, head))
    return Seams(path.name, across, within, *seams, *grey_chroma)


def report(rows: Sequence[Seams]) -> str:
    """The table of medians and of the worst tenth."""
    names = {
        "photo": "photo and completion",
        "within": "within the photo, for comparison",
        "head_relit": "face and head, relit",
        "head_photo": "face and head, photo",
        "grey_skin": "largest chroma of skin, grey photo",
        "grey_other": "largest chroma of eyes and mouth, grey photo",
    }
    cells = []
    for key, name in names.items():
        values = np.array([getattr(row, key) for row in rows])
        cells.append([name, f"{np.nanmedian(values):.2f}", f"{np.nanquantile(values, 0.9):.2f}", f"{np.nanmax(values):.2f}"])
    return markdown_table([f"{len(rows)} portraits", "median", "p90", "largest"], cells)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with photos_ccby")
    parser.add_argument("--mode", default="net", help="reconstruction mode")
    parser.add_argument("--texture-size", type=int, default=512)
    parser.add_argument("--limit", type=int, help="number of portraits")
    parser.add_argument("--jobs", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.jobs)
    folder = options.data / "photos_ccby"
    files = np.load(folder / "templates.npz")["files_189"].tolist()
    if options.limit:
        files = [files[k] for k in np.unique(np.linspace(0, len(files) - 1, options.limit).round().astype(int))]
    reconstructor = Reconstructor(mode=options.mode, max_faces=1, texture_size=options.texture_size)
    given = reconstructor.texture_builder
    builder = RecordingBuilder(
        given.model, detail=given.detail, resolution=given.resolution, texture_size=given.texture_size
    )
    reconstructor.texture_builder = builder
    rows = []
    for name in track(files, "portraits", console=Console(stderr=True)):
        try:
            rows.append(measure(folder / name, reconstructor, builder))
        except MienError as error:
            print(f"- {name}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{Environment.current()}\n\n{report(rows)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=rows)
    return int(len(rows) < len(files))


if __name__ == "__main__":
    sys.exit(main())
