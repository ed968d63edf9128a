"""Drawn faces as files to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mien.export.contact_sheet import SheetLayout, contact_sheet, in_rows
from mien.io.pixels import to_uint8
from mien.networks.crop_space import HEAD_UNITS
from mien.texture import DetailMaps
from mien.training.data.batch import join_batches
from mien.training.synthetic.detailed_faces import DetailedFaces
from mien.training.synthetic.faces import SyntheticFaces
from mien.typing import Float, Tensor, UInt8

SAMPLE_BATCH, SHEET_COLUMNS = 8, 8
CHART_MM = 270.0
"""About the side of the chart of a face, for slopes in pictures of relief."""
RELIEF_CONTRAST = 0.9
"""Grey levels, of 1, that a slope of 1 towards the light makes."""


def write_samples(faces: SyntheticFaces | DetailedFaces, out: Path, *, count: int) -> Path:
    """Write the first faces of a stream as pictures, their truth as truth.npz, and a sheet, whose path is returned.

    With maps each cell of the sheet has the true relief, lit from the upper left, and the offset on grey below it.
    """
    out.mkdir(parents=True, exist_ok=True)
    batches = [faces.batch(range(k, min(k + SAMPLE_BATCH, count))) for k in range(0, count, SAMPLE_BATCH)]
    batch = join_batches(batches)
    if batch.gt is None:
        raise TypeError("drawn faces come with their truth")
    for number, picture in enumerate(_bytes(batch.images)):
        Image.fromarray(picture).save(out / f"face-{number:05d}.png")
    known = {name: getattr(batch.gt, name).numpy() for name in HEAD_UNITS}
    known |= {"focal_px": batch.camera.focal_px.numpy(), "centre_px": batch.camera.centre_px.numpy()}
    known["landmarks68_px"] = batch.landmarks68_px.numpy()
    cells = [batch.images]
    if batch.maps is not None:
        known["displacement_m"] = batch.maps.displacement.numpy()
        known["texture_offset"] = batch.maps.texture_offset.numpy()
        cells += list(_map_pictures(batch.maps, batch.images.shape[-1]))
    np.savez(out / "truth.npz", allow_pickle=False, **known)
    path = out / "sheet.png"
    Image.fromarray(sheet_of(torch.cat(cells, dim=2))).save(path)
    return path


def _map_pictures(maps: DetailMaps, size: int) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B 3 S S"]]:
    """The displacement as a grey relief and the offset on middle grey."""
    height_mm = maps.displacement[:, 0] * 1000
    down, right = torch.gradient(height_mm, dim=(1, 2))
    lit = 0.5 + RELIEF_CONTRAST * (down + right) * (height_mm.shape[-1] / CHART_MM)
    shown = [lit[:, None].expand(-1, 3, -1, -1), maps.texture_offset + 0.5]
    relief, offset = (F.interpolate(m, size=(size, size), mode="bilinear", antialias=True) for m in shown)
    return relief, offset


def _bytes(pictures: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    return to_uint8(pictures.permute(0, 2, 3, 1))


def sheet_of(pictures: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "R C 3"]:
    """Pictures side by side in rows of eight."""
    return contact_sheet(in_rows(list(_bytes(pictures)), SHEET_COLUMNS), SheetLayout(), columns=SHEET_COLUMNS)
