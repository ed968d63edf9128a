"""Seams of textures: photo against completion, face against head; and chroma of the heads of grey photos.

python benchmarks/seams.py --data ../shared/data [--mode net] [--limit N]

Takes the 142 portraits of photos_ccby with templates, frontal, of many skin tones. Colour differences are CIE76, the
distance in CIELAB (D65) of sRGB-encoded colours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from mien.texture import CompletedTexture, Unwrapped
from mien.texture.fill import box_mean
from mien.typing import Tensor

BAR = 2.0
"""Largest difference across a border, and largest chroma of a grey photo's head."""
BLENDED = (0.2, 0.8)
"""Shares of the photo in a texel between which photo and completion blend."""
SKIN = 0.95
PATCH = 80
"""Colours are means over the side of the map over this number, 3 mm on a face: pores are no seam."""


_THINNING = 3
"""Chroma is measured at every third texel of every third row."""


class RecordingBuilder(TextureBuilder):
    """Keeps the last completed texture, and the photo that went into it."""

    last: CompletedTexture
    photo: Unwrapped

    def _unwrapped(self, *arguments: Any, **keywords: Any) -> Unwrapped:
        self.photo = super()._unwrapped(*arguments, **keywords)
        return self.photo

    def completed(self, *arguments: Any, **keywords: Any) -> CompletedTexture:
        self.last = super().completed(*arguments, **keywords)
        return self.last

    def seam(self) -> float:
        """Median difference of photo and completion where they blend on skin, which a sharp border would show."""
        share, photo = self.last.from_photo[0], self.photo.colours[0]
        completion = (self.last.colours[0] - share * photo) / (1 - share).clamp(min=1 - BLENDED[1])
        low, high = BLENDED
        zone = ((share > low) & (share < high) & (self._masks.skin[0] > SKIN)).float()
        sides = [lab_of(_patch_means(colours, zone)) for colours in (photo, completion)]
        return float((sides[0] - sides[1])[:, zone[0] > 0].norm(dim=0).median())


@dataclass(frozen=True)
class Seams:
    """Medians of CIE76 per portrait."""

    file: str
    photo: float
    """Between photo and completion, on skin where they blend."""
    head_relit: float
    """Across the border of face and outer skin, in the relit look."""
    head_photo: float
    """The same in the photo's look."""
    grey_skin: float
    """Largest chroma in the skin's atlases of the grey photo, both looks."""
    grey_other: float
    """Largest chroma in its eyes, teeth, tongue, gums and mouth."""


def _patch_means(colours: Float[Tensor, "3 S S"], zone: Float[Tensor, "1 S S"]) -> Float[np.ndarray, "S S 3"]:
    """Means over the texels of a zone around each texel."""
    radius = max(zone.shape[-1] // (2 * PATCH), 1)
    total = box_mean(zone[None], radius=radius).clamp(min=1e-6)
    return (box_mean((colours * zone)[None], radius=radius) / total)[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()


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
        thinned = encoded[::_THINNING, ::_THINNING] if len(encoded) > 1 else encoded
        return float(lab_of(np.rint(thinned * 255) / 255)[1:].norm(dim=0).max())

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
    (face,) = reconstructor(photo)
    across = builder.seam()
    looks = head_looks(face, model, head, scalp="skin")
    relit, lit = (head_seam(pixels, face, reconstructor) for pixels in (looks.relit, looks.photo))
    luma = np.rint(photo.pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    (grey,) = reconstructor(replace(photo, pixels=np.repeat(luma[..., None], 3, axis=2)))
    skin, others = chroma(head_looks(grey, model, head))
    return Seams(path.name, across, relit, lit, grey_skin=skin, grey_other=others)


def measured(path: Path, reconstructor: Reconstructor, builder: RecordingBuilder) -> Seams | None:
    """`measure`, or None and a message on stderr where the photo cannot be reconstructed."""
    try:
        return measure(path, reconstructor, builder)
    except MienError as error:
        print(f"- {path.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def report(rows: Sequence[Seams]) -> str:
    """The table of medians and of the worst tenth."""
    names = {
        "photo": "photo and completion",
        "head_relit": "face and head, relit",
        "head_photo": "face and head, photo",
        "grey_skin": "largest chroma of skin, grey photo",
        "grey_other": "largest chroma of eyes and mouth, grey photo",
    }
    cells = []
    for key, name in names.items():
        values = np.array([getattr(row, key) for row in rows])
        cells.append(
            [name, f"{np.nanmedian(values):.2f}", f"{np.nanquantile(values, 0.9):.2f}", f"{np.nanmax(values):.2f}"]
        )
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
        row = measured(folder / name, reconstructor, builder)
        rows += [] if row is None else [row]
    print(f"{Environment.current()}\n\n{report(rows)}")
    if options.json:
        write_json(options.json, environment=Environment.current(), results=rows)
    return int(len(rows) < len(files))


if __name__ == "__main__":
    sys.exit(main())
