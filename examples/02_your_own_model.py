"""Use your own face model: from NumPy arrays to a fitted photo.

    python examples/02_your_own_model.py PHOTO OUT

The arrays here are an example: vertices and ten identity components of the packaged model, without colours and UV
layout. Replace them by your own; docs/formats.md lists the arrays that the file may contain.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import mien
from mien.morphable import save_model
from mien.morphable.formats import read_model
from mien.registration import complete


def write_arrays(path: Path) -> None:
    own = mien.load_model()
    np.savez(
        path,
        format=np.array("mien-npz-1"),
        name=np.array("my-model"),
        licence=np.array("CC0-1.0"),
        length_unit_m=np.array(0.001),
        mean=own.mean.numpy() * 1000,
        triangles=own.triangles.numpy(),
        identity_basis=own.identity_basis[:10].numpy() * 1000,
        landmarks68=own.landmarks68.numpy(),
    )


def main(photo: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "my-model.npz")
    model = complete(read_model(folder / "my-model.npz"), mien.load_model())
    for note in model.notes:
        print("completed:", note)
    save_model(model, folder / "my-model.safetensors")
    reconstructor = mien.Reconstructor(folder / "my-model.safetensors")
    picture = mien.read_photo(photo)
    for index, face in enumerate(reconstructor(picture)):
        mien.write_reconstruction(face, reconstructor.model, picture, folder / f"face{index}")
        print(f"face {index}: landmark error {100 * face.landmark_error:.1f} %, see {folder / f'face{index}'}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
