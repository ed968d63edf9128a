"""Real skin for the albedo model: photographs warped onto the face model, freed of light, cast and shine.

A photograph becomes one colour per model vertex in five steps: correspondence (thin-plate spline through the
468 face-mesh points and the hand-placed template), sampling, white balance of the set, removal of the shading
that the model's own normals and self-shadowing explain, and rejection of hair and highlights.
All colours here are linear sRGB; shape is in millimetres.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from skin_optics import decode

# People whose photographs the project's demonstrations show: the model must not be trained on them.
HELD_OUT = ("london_099", "london_119", "london_136", "london_037", "london_012")
MINORS = ("044f", "045f", "100m")

LONDON, CANADA = "neutral_front", "canada"
# Template points that a person placed on visible edges, left and right alike (189-point template, 0-based).
LIDS = tuple(range(18, 34))
BROWS = tuple(range(71, 87))
LIPS = tuple(range(87, 109))
NOSE = (*range(50, 71), 179, 180, 181, 182)
HAIRLINE = tuple(range(134, 145))
IRISES = (tuple(range(2, 10)), tuple(range(10, 18)))


@dataclass(frozen=True)
class Portrait:
    """One photograph with its points, all in pixels of the photograph, origin at its top left corner."""

    file: str
    subject: str
    collection: str
    sex: str
    ethnicity: str
    age: float
    """Years; NaN where the source gives none."""
    pixels: np.ndarray
    """(H, W, 3) linear sRGB, blurred to the model's resolution."""
    template: np.ndarray
    """(189, 2)"""
    mesh: np.ndarray
    """(468, 3)"""


def usable(row: dict[str, str]) -> bool:
    """Whether a photograph may enter the statistics: adult, not held out, with a template."""
    if row["set"] not in (LONDON, CANADA) or row["subject"] in HELD_OUT:
        return False
    if any(name in row["file"] for name in MINORS):
        return False
    return not row["age"] or float(row["age"]) >= 18


def load_portraits(folder: Path, meshes: dict[str, np.ndarray], *, blur: float = 0.0045) -> list[Portrait]:
    """Read the usable photographs of the collection; `meshes` holds the 468 points by file name.

    `blur` is the standard deviation of the prefilter as a fraction of the face's height (0.0045 is 0.8 mm,
    half the distance of neighbouring vertices).
    """
    archive = np.load(folder / "templates.npz")
    templates = dict(zip(archive["files_189"].tolist(), archive["points_189"], strict=True))
    with (folder / "manifest.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["file"] in templates and usable(row)]
    portraits = []
    for row in rows:
        template = templates[row["file"]].astype(float)
        pixels = decode(np.asarray(Image.open(folder / row["file"]).convert("RGB"), float) / 255)
        sigma = blur * np.linalg.norm(template[129] - template[139])
        portraits.append(
            Portrait(
                file=row["file"],
                subject=row["subject"],
                collection=row["set"],
                sex=row["gender"],
                ethnicity=row["ethnicity"].split(" (")[0],
                age=float(row["age"] or "nan"),
                pixels=np.stack([gaussian_filter(pixels[..., k], sigma) for k in range(3)], -1),
                template=template,
                mesh=meshes[row["file"]].astype(float),
            )
        )
    return portraits


def background(portrait: Portrait) -> np.ndarray:
    """Linear colour (3,) of the backdrop in the two upper corners."""
    height, width = portrait.pixels.shape[:2]
    rows, columns = int(0.15 * height), int(0.12 * width)
    corners = (portrait.pixels[:rows, :columns], portrait.pixels[:rows, -columns:])
    return np.median(np.concatenate([c.reshape(-1, 3) for c in corners]), 0)


def sample(pixels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Bilinear colours (N, 3) at pixel positions (N, 2), corner convention; outside the image the edge repeats."""
    at = [positions[:, 1] - 0.5, positions[:, 0] - 0.5]
    return np.stack([map_coordinates(pixels[..., k], at, order=1, mode="nearest") for k in range(3)], -1)


def warp(source: np.ndarray, target: np.ndarray, *, smoothing: float) -> Callable[[np.ndarray], np.ndarray]:
    """Thin-plate spline from model front view (N, 2) to photograph (N, 2)."""
    centre, scale = source.mean(0), source.std()
    spline = RBFInterpolator((source - centre) / scale, target, kernel="thin_plate_spline", smoothing=smoothing)
    return lambda points: spline((np.asarray(points) - centre) / scale)


def agreeing_points(portraits: list[Portrait], mesh_front: np.ndarray, *, tolerance_mm: float = 4.0) -> np.ndarray:
    """Which of the 468 points (bool) lie on the model where their neighbours say: the contour's may not.

    A point is left out when, after the best affine map of the average photograph's points onto the model, it
    strays from the median stray of its eight neighbours by more than the tolerance.
    """
    flat = np.array([portrait.mesh[:, :2] * [1, -1] for portrait in portraits])
    flat = flat - flat.mean(1, keepdims=True)
    average = (flat / flat.std(axis=(1, 2), keepdims=True)).mean(0)
    design = np.concatenate([average, np.ones((len(average), 1))], 1)
    stray = mesh_front - design @ np.linalg.lstsq(design, mesh_front, rcond=None)[0]
    neighbours = cKDTree(average).query(average, k=9)[1][:, 1:]
    return np.linalg.norm(stray - np.median(stray[neighbours], 1), axis=1) < tolerance_mm


def template_on_model(portraits: list[Portrait], mesh_front: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Front-view model positions (189, 2) of the template: where the face mesh carries each point on average.

    `mirror` is the template's own mirror table; the result is symmetric in x.
    """
    placed = []
    good = agreeing_points(portraits, mesh_front)
    for portrait in portraits:
        carry = warp(portrait.mesh[good, :2], mesh_front[good], smoothing=1e-4)
        placed.append(carry(portrait.template))
    mean = np.median(placed, 0)
    return 0.5 * (mean + mean[mirror] * [-1, 1])


def irises(portrait: Portrait) -> tuple[np.ndarray, np.ndarray]:
    """Linear colours of iris and sclera, each (3,): medians that leave pupil, lashes and reflections out."""
    rings, whites = [], []
    height, width = portrait.pixels.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    for k, (pupil, ring, corners) in enumerate(((0, IRISES[0], (18, 22)), (1, IRISES[1], (23, 27)))):
        centre = portrait.template[pupil]
        radius = np.median(np.linalg.norm(portrait.template[list(ring)] - centre, axis=1))
        distance = np.hypot(columns - centre[0], rows - centre[1])
        below = rows > centre[1] - 0.1 * radius
        colours = portrait.pixels[(distance > 0.5 * radius) & (distance < 0.85 * radius) & below]
        light = colours.sum(1)
        rings.append(colours[light <= np.quantile(light, 0.6)].mean(0))
        between = (columns > portrait.template[corners[0], 0]) & (columns < portrait.template[corners[1], 0])
        lower = portrait.template[28:31] if k == 0 else portrait.template[31:34]
        inside = between & (np.abs(rows - centre[1]) < 0.35 * radius) & (rows < lower[:, 1].max())
        colours = portrait.pixels[inside & (distance > 1.1 * radius) & (distance < 2.2 * radius)]
        if len(colours):
            light = colours.sum(1)
            whites.append(colours[light >= np.quantile(light, 0.7)].mean(0))
    white = np.mean(whites, 0) if whites else np.full(3, np.nan)
    return np.mean(rings, 0), white


def pupil_fractions(portraits: list[Portrait]) -> tuple[float, float]:
    """Where pupils sit in the open eye: share of the way from inner to outer corner, and from lower to upper lid."""
    along, up = [], []
    for portrait in portraits:
        point = portrait.template
        for pupil, inner, outer, upper, lower in ((0, 22, 18, 20, 29), (1, 23, 27, 25, 32)):
            width = point[outer] - point[inner]
            along.append(((point[pupil] - point[inner]) @ width) / (width @ width))
            up.append((point[lower, 1] - point[pupil, 1]) / (point[lower, 1] - point[upper, 1]))
    return float(np.median(along)), float(np.median(up))
