"""Draw the pictures of docs/albedo.md from the packaged model: random people, the mean, the components."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from shading import render

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "src" / "mien" / "assets" / "mien-face.safetensors"
PEOPLE_SEED = 3
IDENTITY_SCALE = 0.8  # draws a little inside the shape's spread, so that the sheet shows skin and not odd shapes


def read(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def random_people(arrays: dict[str, np.ndarray], *, count: int = 24, columns: int = 6) -> np.ndarray:
    """Sheet of people with random identity and albedo, from the front under mild light."""
    rng = np.random.default_rng(PEOPLE_SEED)
    shapes, skins = arrays["identity_basis"].astype(np.float32), arrays["albedo_basis"].astype(np.float32)
    pictures = []
    for _ in range(count):
        skin = rng.normal(size=len(skins)).astype(np.float32)
        shape = (IDENTITY_SCALE * rng.normal(size=len(shapes))).astype(np.float32)
        vertices = arrays["mean"] + np.tensordot(shape, shapes, 1)
        colours = (arrays["albedo_mean"] + np.tensordot(skin, skins, 1)).clip(0, 1)
        pictures.append(render(vertices, arrays["triangles"].astype(int), colours, size=(330, 250)))
    return tiled(pictures, columns)


def mean_face(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The mean albedo on the mean face from three sides."""
    triangles = arrays["triangles"].astype(int)
    return tiled(
        [
            render(arrays["mean"], triangles, arrays["albedo_mean"], size=(460, 380), yaw=yaw)
            for yaw in (0.0, 35.0, 70.0)
        ],
        3,
    )


def components(arrays: dict[str, np.ndarray], *, count: int = 12, amount: float = 2.0) -> np.ndarray:
    """The first components, down in the upper row and up in the lower."""
    triangles = arrays["triangles"].astype(int)
    pictures = []
    for sign in (-amount, amount):
        for component in arrays["albedo_basis"][:count].astype(np.float32):
            colours = (arrays["albedo_mean"] + sign * component).clip(0, 1)
            pictures.append(render(arrays["mean"], triangles, colours, size=(190, 140)))
    return tiled(pictures, count)


def tiled(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    rows = [np.concatenate(pictures[k : k + columns], 1) for k in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path, quality=90, subsampling=0, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    arrays = read(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    save(random_people(arrays), options.out / "albedo_samples.jpg")
    save(mean_face(arrays), options.out / "albedo_mean.jpg")
    save(components(arrays), options.out / "albedo_components.jpg")


if __name__ == "__main__":
    main()
