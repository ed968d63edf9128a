"""Writes synthetic faces as image files to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from mien.export.contact_sheet import SheetLayout, contact_sheet, in_rows
from mien.io.pixels import to_uint8
from mien.networks.crop_space import HEAD_UNITS
from mien.texture import DetailMaps
from mien.training.data.batch import FaceBatch, join_batches
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.disk_names import SAMPLES_FILE
from mien.training.synthetic.faces import SyntheticFaces
from mien.typing import Float, Tensor, UInt8

SAMPLE_BATCH, SHEET_COLUMNS = 8, 8
UV_MAP_MM = 270.0
"""Approximate side of the UV map on a face, for slopes in images of relief."""
RELIEF_CONTRAST = 0.9
"""Change in brightness (1 is black to white) of a slope of 1 towards the light."""


def write_samples(faces: SyntheticFaces | DetailedFaces, out: Path, *, count: int) -> Path:
    """Write the first faces of a stream as PNG files, a contact sheet, and their ground truth as an npz file.

    For `DetailedFaces` each cell of the sheet also shows the ground-truth relief, lit from the upper left, and the
    texture offset on grey.

    Args:
        faces: The stream.
        out: Folder; made if it does not exist.
        count: Number of faces.

    Returns:
        Path of the contact sheet.
    """
    out.mkdir(parents=True, exist_ok=True)
    batches = [faces.batch(range(k, min(k + SAMPLE_BATCH, count))) for k in range(0, count, SAMPLE_BATCH)]
    batch = join_batches(batches)
    for number, image in enumerate(_to_bytes(batch.images)):
        Image.fromarray(image).save(out / f"face-{number:05d}.png")
    np.savez(out / SAMPLES_FILE, allow_pickle=False, **_ground_truth(batch))
    cells = [batch.images]
    if batch.maps is not None:
        cells += list(_map_images(batch.maps, batch.images.shape[-1]))
    path = out / "sheet.png"
    Image.fromarray(sheet_of(torch.cat(cells, dim=2))).save(path)
    return path


def _ground_truth(batch: FaceBatch) -> dict[str, NDArray[np.floating]]:
    if batch.gt is None:
        raise TypeError("batch.gt is None; samples are written of synthetic faces, which have ground truth.")
    known = {name: getattr(batch.gt, name) for name in HEAD_UNITS}
    known |= {"focal_px": batch.camera.focal_px, "centre_px": batch.camera.centre_px}
    known["landmarks68_px"] = batch.landmarks68_px
    if batch.maps is not None:
        known |= {"displacement_m": batch.maps.displacement, "texture_offset": batch.maps.texture_offset}
    return {name: tensor.numpy() for name, tensor in known.items()}


def _map_images(maps: DetailMaps, size: int) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]]:
    """The displacement as a grey relief, and the texture offset on middle grey."""
    height_mm = maps.displacement[:, 0] * 1000
    down, right = torch.gradient(height_mm, dim=(1, 2))
    lit = 0.5 + RELIEF_CONTRAST * (down + right) * (height_mm.shape[-1] / UV_MAP_MM)
    both = [lit[:, None].expand(-1, 3, -1, -1), maps.texture_offset + 0.5]
    relief, offset = (F.interpolate(m, size=(size, size), mode="bilinear", antialias=True) for m in both)
    return relief, offset


def _to_bytes(images: Float[Tensor, "B 3 H W"]) -> NDArray[np.uint8]:
    return to_uint8(images.permute(0, 2, 3, 1))


def sheet_of(images: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "R C 3"]:
    """Images side by side in rows of eight; missing cells are black."""
    return contact_sheet(in_rows(list(_to_bytes(images)), SHEET_COLUMNS), SheetLayout(), columns=SHEET_COLUMNS)
