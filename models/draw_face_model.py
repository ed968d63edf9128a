"""Draw the pictures of docs/face_model.md.

    python models/draw_face_model.py

writes docs/images/face_model_*.png from the packaged model and prints its table of dimensions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from anthropometry import NIOSH, Measures, place_measures
from build_face_model import ASSET, ROOT
from preview import View, annotate, rasterize, render, save
from safetensors import safe_open
from surface import vertex_normals

IMAGES = ROOT / "docs" / "images"
SHOWN = (
    {"eyeBlink": 1.0}, {"jawOpen": 0.7}, {"jawOpen": 1.0, "mouthClose": 1.0}, {"mouthSmile": 0.8},
    {"mouthSmile": 0.7, "jawOpen": 0.25}, {"mouthPucker": 1.0}, {"mouthFunnel": 1.0}, {"browInnerUp": 1.0},
    {"browDown": 1.0}, {"mouthFrown": 1.0}, {"eyeWide": 1.0, "jawOpen": 0.4}, {"cheekPuff": 1.0},
)  # fmt: skip


def read(path: Path = ASSET) -> tuple[dict[str, np.ndarray], list[str]]:
    with safe_open(path, "np") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["expression_names"])


def dimension_table(arrays: dict[str, np.ndarray]) -> str:
    """Markdown rows of target and model, 20,000 random people."""
    measures = place_measures(
        arrays["mean"].astype(float),
        triangles=arrays["triangles"],
        mirror=arrays["mirror"],
        eye=arrays["mask_eyes"] > 0.5,
        hidden=arrays["mask_mouth"] > 0.5,
        table=arrays["landmarks68"],
    )
    used = np.unique(measures.ends)
    basis = arrays["identity_basis"][:, used].astype(float)
    people = np.random.default_rng(1).normal(size=(20000, len(basis)))
    shapes = arrays["mean"][used].astype(float) + np.tensordot(people, basis, 1)
    dimensions = Measures(np.searchsorted(used, measures.ends)).of(shapes)
    rows = ["| dimension (mm) | survey mean | survey SD | model mean | model SD |", "|---|---|---|---|---|"]
    for k, target in enumerate(NIOSH):
        rows.append(
            f"| {target.name} | {target.mean:.1f} | {target.sd:.1f} | {dimensions[:, k].mean():.1f} "
            f"| {dimensions[:, k].std():.1f} |"
        )
    return "\n".join(rows)


def grid(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    rows = [np.concatenate(pictures[k : k + columns], 1) for k in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    arrays, names = read()
    mean, triangles = arrays["mean"].astype(float), arrays["triangles"]
    identity = arrays["identity_basis"].astype(float)
    blendshapes = arrays["expression_basis"].astype(float)
    eyes, mouth = (arrays[f"mask_{part}"].astype(float)[:, None] for part in ("eyes", "mouth"))
    colours = 0.8 * (1 - eyes - mouth) + eyes * [0.97, 0.97, 1.0] + mouth * [0.65, 0.35, 0.35]
    save(
        grid(
            [
                render(mean, triangles, View(yaw=yaw, scale=2.3, width=400, height=530), colours=colours)
                for yaw in (0, -35, -90)
            ],
            3,
        ),
        IMAGES / "face_model_mean.png",
    )
    small = View(yaw=-30, scale=1.35, width=220, height=320)
    save(
        grid(
            [
                render(mean + sign * 2.5 * identity[k], triangles, small, colours=colours)
                for sign in (-1, 1)
                for k in range(5)
            ],
            5,
        ),
        IMAGES / "face_model_components.png",
    )
    rng = np.random.default_rng(5)
    people = [mean + np.tensordot(rng.normal(size=len(identity)), identity, 1) for _ in range(12)]
    save(
        grid(
            [
                render(shape, triangles, View(yaw=(0, -30)[k % 2], scale=1.3, width=220, height=310), colours=colours)
                for k, shape in enumerate(people)
            ],
            6,
        ),
        IMAGES / "face_model_people.png",
    )
    shown = []
    for weights in SHOWN:
        shape = mean.copy()
        for name, weight in weights.items():
            for full in [name] if name in names else [name + "Left", name + "Right"]:
                shape += weight * blendshapes[names.index(full)]
        shown.append(render(shape, triangles, View(yaw=-15, scale=1.3, width=220, height=320), colours=colours))
    save(grid(shown, 6), IMAGES / "face_model_expressions.png")

    parts = np.full((len(mean), 3), 0.8)
    for part, colour in (
        ("lips", (0.8, 0.4, 0.4)),
        ("brows", (0.5, 0.4, 0.3)),
        ("neck", (0.6, 0.7, 0.8)),
        ("eyes", (0.97, 0.97, 1)),
        ("mouth", (0.6, 0.3, 0.3)),
    ):
        share = arrays[f"mask_{part}"].astype(float)[:, None]
        parts = parts * (1 - share) + share * np.array(colour)
    strips = arrays["contour_candidates"]
    sites = (mean[triangles[arrays["mediapipe_triangles"]]] * arrays["mediapipe_barycentrics"][..., None]).sum(1)
    places = []
    for yaw in (0, -40):
        view = View(yaw=yaw, scale=3.2, width=520, height=680)
        picture = render(mean, triangles, view, colours=parts, ambient=0.4)
        picture = annotate(picture, view.project(mean[strips[strips >= 0]]), colour=(0, 150, 0), radius=1.3)
        places.append(annotate(picture, view.project(mean[arrays["landmarks68"]]), labels=True, radius=2.2))
    view = View(scale=3.2, width=520, height=680)
    places.append(
        annotate(
            render(mean, triangles, view, colours=parts, ambient=0.4),
            view.project(sites),
            colour=(20, 20, 220),
            radius=1.5,
        )
    )
    save(grid(places, 3), IMAGES / "face_model_landmarks.png")

    size = 512
    uv = arrays["uv"].astype(float)
    pixels = np.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size, np.zeros(len(uv))], 1)
    index, weights = rasterize(pixels, triangles, height=size, width=size)
    normals = vertex_normals(mean, triangles) * 0.5 + 0.5
    uv_map = np.ones((size, size, 3))
    filled = index >= 0
    uv_map[filled] = (normals[triangles[index[filled]]] * weights[filled][..., None]).sum(1)
    save(uv_map, IMAGES / "face_model_uv.png")
    print(dimension_table(arrays))


if __name__ == "__main__":
    main()
