"""A small scan of a face-like surface, and data sets of it in the layouts of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mien.morphable.landmark_tables import MEDIAPIPE_EYES, MEDIAPIPE_MOUTH, MEDIAPIPE_OVAL

COLUMNS, ROWS = 33, 41
IMAGE_SIZE = 200, 260
CAMERA = np.array([[520.0, 0, -100, 100 * 1000], [0, -520.0, -130, 130 * 1000], [0, 0, -1, 1000]])
"""1 m in front of the scan's origin: x right, y down, the first pixel's centre at (0, 0)."""
FOREHEAD_FROM, REGION_NAMES = 45.0, ("nose", "mouth", "cheeks", "forehead", "chin", "orbit")
LANDMARKS_XY = np.array([[-45, 30], [-15, 30], [15, 30], [45, 30], [0, -15], [-25, -45], [25, -45]], float)


def height(xy: np.ndarray) -> np.ndarray:
    """The scan's surface: a bulge with a nose, not symmetric."""
    x, y = xy[..., 0], xy[..., 1]
    nose = 22 * np.exp(-(x**2) / 200 - (y + 5) ** 2 / 500)
    return 40 - 0.007 * x**2 - 0.004 * y**2 + nose + 3 * np.sin(x / 17 + y / 23)


def lifted(xy: np.ndarray) -> np.ndarray:
    return np.concatenate([xy, height(xy)[..., None]], axis=-1)


def grid_mesh() -> tuple[np.ndarray, np.ndarray]:
    u, v = np.meshgrid(np.linspace(-75, 75, COLUMNS), np.linspace(-95, 95, ROWS))
    corner = (np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS - 1)).reshape(-1)
    first = np.stack([corner, corner + 1, corner + COLUMNS + 1], axis=-1)
    second = np.stack([corner, corner + COLUMNS + 1, corner + COLUMNS], axis=-1)
    return lifted(np.stack([u.reshape(-1), v.reshape(-1)], axis=-1)), np.concatenate([first, second])


def on_mesh(count: int, seed: int = 0) -> np.ndarray:
    """Points on the mesh itself, in random order, inside of the face's oval."""
    rng = np.random.default_rng(seed)
    vertices, triangles = grid_mesh()
    weights = rng.dirichlet(np.ones(3), 4 * count)
    points = (vertices[triangles[rng.integers(len(triangles), size=4 * count)]] * weights[..., None]).sum(1)
    return points[(points[:, 0] / 62) ** 2 + (points[:, 1] / 82) ** 2 < 1][:count]


def project(points: np.ndarray) -> np.ndarray:
    image = points @ CAMERA[:, :3].T + CAMERA[:, 3]
    return image[:, :2] / image[:, 2:]


def landmarks468() -> np.ndarray:
    """Where MediaPipe's points are on the scan: the oval and the openings are right, the others in the middle."""
    xy = np.zeros((468, 2))
    for indices, centre, size in (
        (MEDIAPIPE_OVAL, (0, 0), (62, 82)),
        (MEDIAPIPE_EYES[0], (-30, 30), (14, 5)),
        (MEDIAPIPE_EYES[1], (30, 30), (14, 5)),
        (MEDIAPIPE_MOUTH, (0, -45), (18, 2)),
    ):
        turn = np.linspace(0, 2 * np.pi, len(indices), endpoint=False)
        xy[list(indices)] = np.array(centre) + np.stack([np.cos(turn), np.sin(turn)], axis=-1) * size
    xy[[33, 133, 362, 263, 2, 61, 291]] = LANDMARKS_XY
    return lifted(xy)


def moved(points: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """Another frame: turned, shifted and scaled."""
    a, b = 0.4, -0.7
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return scale * points @ (turn_x @ turn_y).T + [30.0, -12.0, 500.0]


def write_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", IMAGE_SIZE, (120, 100, 90)).save(path)


def write_obj(path: Path, vertices: np.ndarray, triangles: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
    lines += [f"f {a} {b} {c}" for a, b, c in triangles + 1]
    path.write_text("\n".join(lines) + "\n")


def write_pack(folder: Path, names: tuple[str, ...] = ("a", "b")) -> None:
    """mien's layout."""
    vertices, triangles = grid_mesh()
    points = on_mesh(1200)
    labels = np.full(len(points), 2)
    labels[points[:, 1] > FOREHEAD_FROM] = 3
    labels[(np.abs(points[:, 0]) < 12) & (np.abs(points[:, 1] + 5) < 20)] = 0
    (folder / "scans").mkdir(parents=True)
    for name in names:
        write_photo(folder / "photos" / f"{name}.jpg")
        np.savez(
            folder / "scans" / f"{name}.npz",
            V=vertices.astype(np.float32),
            F=triangles.astype(np.int16),
            P=CAMERA,
            lm2d=project(landmarks468()).astype(np.float32),
            lm3d=landmarks468().astype(np.float32),
            pts=points.astype(np.float32),
            pts_label=labels.astype(np.int8),
            smooth_off=np.zeros(len(points), np.float32),
            view=np.array([0.0, 0, 1]),
            tip=lifted(np.array([0.0, -5])),
        )


def write_now(folder: Path, names: tuple[str, ...] = ("ANNA_1/selfie/IMG_1",)) -> None:
    """NoW's layout, with the header that MeshLab writes before picked points."""
    (folder).mkdir(parents=True, exist_ok=True)
    (folder / "imagepathsvalidation.txt").write_text("".join(f"{name}.jpg\n" for name in names))
    for name in names:
        subject = name.split("/")[0]
        write_photo(folder / "NoW_Dataset" / "final_release_version" / "iphone_pictures" / f"{name}.jpg")
        write_obj(folder / "scans" / subject / "scan.obj", *grid_mesh())
        picked = folder / "scans_lmks_onlypp" / subject / "scan_picked_points.pp"
        picked.parent.mkdir(parents=True, exist_ok=True)
        picked.write_text(
            "<!DOCTYPE PickedPoints>\n<PickedPoints>\n <DocumentData>\n"
            '  <DateTime date="2019-01-01" time="10:00:00"/>\n  <User name="x"/>\n'
            '  <DataFileName name="scan.obj"/>\n  <templateName name="new"/>\n </DocumentData>\n'
            + "".join(
                f' <point x="{x:.6f}" y="{y:.6f}" z="{z:.6f}" active="1" name="{k}"/>\n'
                for k, (x, y, z) in enumerate(lifted(LANDMARKS_XY))
            )
            + "</PickedPoints>\n"
        )


def write_now_prediction(folder: Path, vertices: np.ndarray, landmarks: np.ndarray, name: str) -> None:
    write_obj(folder / f"{name}.obj", vertices, grid_mesh()[1])
    np.save(folder / f"{name}.npy", landmarks)


REALY_FACTOR = 80.0
"""Millimetres per unit of the REALY data set of the tests."""
REALY_BOXES = {"nose": (-12, 12, -25, 15), "mouth": (-30, 30, -60, -30), "forehead": (-50, 50, 40, 70),
               "cheek": (-60, 60, -50, 20)}  # fmt: skip


def realy_keypoints() -> tuple[np.ndarray, list[list[float]]]:
    """85 points on the mesh, and their triangles and weights."""
    rng = np.random.default_rng(3)
    vertices, triangles = grid_mesh()
    centres = vertices[triangles].mean(1)
    chosen = rng.choice(np.flatnonzero(np.abs(centres[:, :2]).max(1) < 60), 85, replace=False)
    weights = rng.dirichlet(np.ones(3), 85)
    points = (vertices[triangles[chosen]] * weights[..., None]).sum(1)
    return points, [[int(t), float(w[0]), float(w[1])] for t, w in zip(chosen, weights, strict=True)]


def write_realy(folder: Path, subjects: tuple[int, ...] = (1, 2)) -> None:
    """REALY's layout; its keypoints file has vertices only."""
    vertices, triangles = grid_mesh()
    for subject in subjects:
        write_photo(folder / "REALY_image" / f"{subject}.jpg")
        write_obj(folder / "REALY_HIFI3D_keypoints" / f"{subject}.obj", realy_keypoints()[0] / REALY_FACTOR,
                  np.zeros((0, 3), int))  # fmt: skip
        for region, (left, right, low, high) in REALY_BOXES.items():
            inside = (vertices[:, 0] >= left) & (vertices[:, 0] <= right)
            inside &= (vertices[:, 1] >= low) & (vertices[:, 1] <= high)
            kept = triangles[inside[triangles].all(-1)]
            used, renumbered = np.unique(kept, return_inverse=True)
            path = folder / "REALY_scan_region" / str(subject) / f"{region}.obj"
            write_obj(path, vertices[used] / REALY_FACTOR, renumbered.reshape(-1, 3))
    (folder / "metrical_scale.txt").write_text("".join(f"{REALY_FACTOR}\n" for _ in subjects))


def write_realy_prediction(folder: Path, vertices: np.ndarray, subject: int) -> None:
    write_obj(folder / f"{subject}.obj", vertices, grid_mesh()[1])
    (folder / "template.txt").write_text(json.dumps(realy_keypoints()[1]))
