"""Where predicted faces come from: a reconstruction, the mean face, or files in the layout of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mien.errors import ConfigError, FormatError, NoFaceFound
from mien.evaluation.scan_packs import REALY_KEYPOINT_COUNT, ScanPack, surface_of
from mien.evaluation.scans import IBUG_OF_SEVEN, FaceScan, PredictedFace
from mien.geometry import Surface
from mien.io.files import write_text, write_whole
from mien.io.npz import NpzReader, indices, numbers, read_npy
from mien.io.reading import read_json, read_numbers
from mien.morphable import MorphableModel
from mien.morphable.formats.ict import read_obj
from mien.pipeline import Reconstructor
from mien.result import Reconstruction
from mien.typing import Float, Tensor

Predictor = Callable[[FaceScan], PredictedFace]
"""Predicts the face of a scan's photo; raises MienError if it cannot."""
UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Millimetres per unit of a mesh."""


def reconstructed_face(face: Reconstruction) -> PredictedFace:
    """A reconstruction as a prediction in millimetres."""
    vertices = torch.from_numpy(1000 * face.vertices.astype(np.float64))
    landmarks = vertices[torch.from_numpy(face.landmarks68_vertices.astype(np.int64))]
    return PredictedFace(
        Surface(vertices, torch.from_numpy(face.triangles.astype(np.int64))),
        metric=True,
        pixels=torch.from_numpy(face.xy.astype(np.float64)) - 0.5,
        landmarks7=landmarks[list(IBUG_OF_SEVEN)],
        keypoints=_realy_keypoints(landmarks),
    )


def _realy_keypoints(landmarks68: Float[Tensor, "68 3"]) -> Float[Tensor, "85 3"]:
    """REALY's keypoints as far as they are iBUG points; the other 17 are unknown."""
    return torch.cat([landmarks68, torch.full((REALY_KEYPOINT_COUNT - 68, 3), torch.nan, dtype=torch.float64)])


def predict_by_reconstruction(reconstructor: Reconstructor) -> Predictor:
    """Reconstruct the most prominent face of each photo.

    Where the photo's camera is known, the alignment starts from pixels alone.
    """

    return lambda scan: _as_measured(reconstructor(_photo_of(scan))[0], scan)


def predict_together(reconstructor: Reconstructor, scans: Sequence[FaceScan]) -> Predictor:
    """Reconstruct photos of one person together.

    Args:
        reconstructor: Reconstructs the photos.
        scans: The scans of these photos.

    Returns:
        A predictor for these scans alone; it raises NoFaceFound for a photo that was left out.

    Raises:
        MienError: A photo is missing, or the joint reconstruction failed.

    Warns:
        PhotoLeftOut: As in `Reconstructor.joint`.
    """
    person = reconstructor.joint([_photo_of(scan) for scan in scans])
    found = {scan.name: k for k, scan in enumerate(scans)}

    def predict(scan: FaceScan) -> PredictedFace:
        k = found[scan.name]
        face = person.faces[k]
        if face is None:
            raise NoFaceFound(person.reasons[k])
        return _as_measured(face, scan)

    return predict


def _photo_of(scan: FaceScan) -> Path:
    if scan.photo is None:
        raise FormatError(f"{scan.name}: the photo is missing; complete the data set, or give predictions.")
    return scan.photo


def _as_measured(face: Reconstruction, scan: FaceScan) -> PredictedFace:
    found = reconstructed_face(face)
    return found if scan.camera is None else replace(found, landmarks7=None)


def predict_mean_face(model: MorphableModel) -> Predictor:
    """The model's mean face for every photo, the baseline that knows nothing; it starts from 7 landmarks."""
    vertices = 1000 * model.mean.double()
    landmarks = vertices[model.landmarks68]
    face = PredictedFace(
        Surface(vertices, model.triangles.long()),
        metric=True,
        landmarks7=landmarks[list(IBUG_OF_SEVEN)],
        keypoints=_realy_keypoints(landmarks),
    )
    return lambda scan: face


@dataclass(frozen=True)
class PredictionFiles:
    """Files of predictions, in the layout of a benchmark.

    mien's layout: per photo `ID.npz` (vertices, triangles, and optionally xy, lm7 and unit as docs/scans.md
    describes), `ID.obj`, or the result folder `ID` of `mien reconstruct`. NoW: `SUBJECT/CHALLENGE/NAME.obj` with the 7
    landmarks in `.npy` or `.txt`. REALY: `NAME.obj`, and one `.txt` with the barycentric coordinates of 85 keypoints.
    """

    folder: Path
    """The folder."""
    unit: str | None = None
    """Unit of the meshes: mm, cm or m; None if it is unknown."""
    landmark_vertices: tuple[int, ...] | None = None
    """Vertices at the 7 landmarks, for meshes of one topology without landmarks of their own."""

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FormatError(f"{self.folder} is not a folder; give the folder of the predictions.")
        if self.unit is not None and self.unit not in UNITS_MM:
            raise ConfigError(f"unit={self.unit!r} is unknown; use one of {', '.join(UNITS_MM)}.")
        if self.landmark_vertices is not None and len(self.landmark_vertices) != 7:
            raise ConfigError(f"landmark_vertices has {len(self.landmark_vertices)} numbers; give 7.")

    def predictor(self, pack: ScanPack) -> Predictor:
        """Read the prediction of each photo of a data set."""
        read = {"pack": self._read_own, "now": self._read_now, "realy": self._read_realy}[pack.layout]
        return lambda scan: read(scan.name)

    def _read_own(self, name: str) -> PredictedFace:
        path = self.folder / f"{name}.npz"
        if path.is_file():
            return self._read_npz(path)
        if (self.folder / name / "face0").is_dir():
            return replace(reconstructed_face(Reconstruction.load(self.folder / name / "face0")), landmarks7=None)
        return self._mesh(self.folder / f"{name}.obj")

    def _read_npz(self, path: Path) -> PredictedFace:
        archive = NpzReader(path)
        vertices, triangles = (numbers(archive.array(name), name, path) for name in ("vertices", "triangles"))
        surface = surface_of(vertices, triangles, path)
        face = self._scaled(surface, unit=archive.text("unit", "") or self.unit)
        if "xy" in archive:
            pixels = numbers(archive.array("xy"), "xy", path).astype(np.float64)
            if pixels.shape != (len(surface.vertices), 2):
                raise FormatError(f"{path}: xy has shape {pixels.shape}; expected one row per vertex.")
            face = replace(face, pixels=torch.from_numpy(pixels))
        if "lm7" in archive:
            face = _with_landmarks(face, tuple(indices(archive.array("lm7"), "lm7", path).reshape(-1).tolist()), path)
        return face

    def _read_now(self, name: str) -> PredictedFace:
        face = self._mesh(self.folder / f"{name}.obj")
        table = self.folder / f"{name}.npy"
        if table.is_file():
            points = numbers(read_npy(table), "the array", table)
        else:
            table = self.folder / f"{name}.txt"
            points = read_numbers(table, advice="expected 7 landmarks of 3 numbers")
        if points.shape != (7, 3):
            raise FormatError(f"{table}: landmarks have shape {points.shape}; expected (7, 3).")
        factor = UNITS_MM[self.unit] if self.unit else 1.0
        return replace(face, landmarks7=torch.from_numpy(factor * points.astype(np.float64)))

    def _read_realy(self, name: str) -> PredictedFace:
        face = self._mesh(self.folder / f"{name}.obj")
        tables = sorted(self.folder.glob("*.txt"))
        if len(tables) != 1:
            raise FormatError(f"{self.folder}: {len(tables)} .txt files; expected one, with the 85 keypoints.")
        rows = read_barycentric_keypoints(tables[0])
        weights = torch.from_numpy(np.column_stack([rows[:, 1:], 1 - rows[:, 1] - rows[:, 2]]))
        corners = face.surface.triangles[torch.from_numpy(rows[:, 0].astype(np.int64))]
        keypoints = (face.surface.vertices[corners] * weights[..., None]).sum(1)
        return replace(face, keypoints=keypoints, landmarks7=keypoints[list(IBUG_OF_SEVEN)])

    def _mesh(self, path: Path) -> PredictedFace:
        face = self._scaled(surface_of(*read_obj(path), path), unit=self.unit)
        return face if self.landmark_vertices is None else _with_landmarks(face, self.landmark_vertices, path)

    @staticmethod
    def _scaled(surface: Surface, *, unit: str | None) -> PredictedFace:
        if unit is None:
            return PredictedFace(surface)
        if unit not in UNITS_MM:
            raise FormatError(f"the unit {unit!r} of a prediction is unknown; use one of {', '.join(UNITS_MM)}.")
        return PredictedFace(Surface(UNITS_MM[unit] * surface.vertices, surface.triangles), metric=True)


def _with_landmarks(face: PredictedFace, vertices: tuple[int, ...], path: Path) -> PredictedFace:
    if len(vertices) != 7 or not 0 <= min(vertices) <= max(vertices) < len(face.surface.vertices):
        raise FormatError(f"{path}: the landmarks {list(vertices)} are not 7 vertices of the mesh.")
    return replace(face, landmarks7=face.surface.vertices[list(vertices)])


def read_barycentric_keypoints(path: Path) -> Float[np.ndarray, "85 3"]:
    """REALY's table of keypoints: per keypoint a triangle, and the weights of its first two corners (JSON)."""
    stored = read_json(path, list[tuple[float, ...]], advice="expected a list of triangles and weights")
    if len({len(row) for row in stored}) > 1:
        raise FormatError(f"{path}: the rows of the keypoints differ in length; expected 3 numbers.")
    rows = np.array(stored, np.float64)
    if rows.shape != (REALY_KEYPOINT_COUNT, 3):
        raise FormatError(f"{path}: keypoints have shape {rows.shape}; expected {(REALY_KEYPOINT_COUNT, 3)}.")
    return rows


def write_prediction(face: PredictedFace, folder: Path, name: str, *, layout: str) -> None:
    """Write a prediction as the benchmark's own tool reads it, in millimetres.

    Args:
        face: The prediction.
        folder: Folder of all predictions.
        name: Name of the photo.
        layout: "pack": `ID.npz`. "now": `SUBJECT/CHALLENGE/NAME.obj` with the 7 landmarks in `.npy`; its tool needs
            `--predicted_mesh_unit mm`. "realy": `NAME.obj`; its authors make the table of keypoints from one mesh.

    Raises:
        OSError: A file cannot be written.
    """
    path = folder / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "pack":
        write_whole(path, lambda partial: _save_npz(face, partial))
        return
    vertices, triangles = face.surface.vertices.numpy(), face.surface.triangles.numpy() + 1
    lines = ["v {:.5f} {:.5f} {:.5f}".format(*row) for row in vertices.tolist()]
    lines += ["f {} {} {}".format(*row) for row in triangles.tolist()]
    write_text(path.with_suffix(".obj"), "\n".join(lines) + "\n")
    if layout == "now" and face.landmarks7 is not None:
        landmarks = face.landmarks7.numpy()
        write_whole(path.with_suffix(".npy"), lambda partial: _save_npy(landmarks, partial))


def _save_npz(face: PredictedFace, path: Path) -> None:
    arrays = {"vertices": face.surface.vertices.numpy(), "triangles": face.surface.triangles.numpy()}
    if face.pixels is not None:
        arrays["xy"] = face.pixels.numpy()
    if face.landmarks7 is not None:
        nearest = torch.cdist(face.landmarks7, face.surface.vertices).argmin(1)
        arrays["lm7"] = nearest.numpy()
    if face.metric:
        arrays["unit"] = np.array("mm")
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]


def _save_npy(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
