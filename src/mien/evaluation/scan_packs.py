"""Reads data sets of photos with scans: mien's own layout, NoW's and REALY's.

Layouts and formulas are those of the benchmarks' published tools (Sanyal et al., CVPR 2019, GitHub
soubhiksanyal/now_evaluation; Chai et al., ECCV 2022, GitHub czh-98/REALY); their code is not used.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from mien.errors import FormatError
from mien.evaluation.scan_alignment import IcpSettings
from mien.evaluation.scan_camera import ScanCamera
from mien.evaluation.scans import IBUG_OF_SEVEN, FaceScan, Keypoints
from mien.geometry import Surface
from mien.io.npz import NpzReader, indices, numbers
from mien.io.photo_files import find_photos
from mien.io.reading import file_size, read_numbers, read_text
from mien.morphable.formats.ict import read_obj
from mien.typing import Float, Tensor

PACK_REGIONS = ("nose", "mouth", "cheeks", "forehead", "chin", "orbit")
_MEDIAPIPE_OF_SEVEN = (33, 133, 362, 263, 2, 61, 291)
"""The seven landmarks among MediaPipe's 468 points."""
_NOW_ICP = IcpSettings(trim=0.0, points=3000, tolerance_mm=1e-4)
"""NoW's alignment uses all points of the cropped scan, by least squares; 3,000 random ones give the same."""
_REALY_ICP = IcpSettings(trim=0.0, steps=0)
"""REALY aligns the whole face by 7 keypoints alone."""
_REALY_REGIONS = ("nose", "mouth", "forehead", "cheek")
_REALY_MOUTH = (*range(48, 61), 64)
_REALY_KEYPOINTS = (
    (*range(27, 36), 70, 71),
    _REALY_MOUTH,
    (*range(36, 48), *range(17, 27)),
    (*_REALY_MOUTH, 76, 77, 36, 41, 40, 39, 42, 47, 46, 45, 7, 8, 9),
)
"""Keypoints that lead each region; 0 to 67 are the iBUG points."""
_REALY_WEIGHTS = (1.0, 1.0, 1.0, 0.25)
REALY_KEYPOINT_COUNT = 85


class ScanPack(ABC):
    """A folder of photos with scans."""

    layout: ClassVar[str]
    """Name of the layout: pack, now or realy."""
    pooled: ClassVar[bool] = False
    """Whether the benchmark's official figures are those of all points of all photos together."""
    always_regional: ClassVar[bool] = False
    """Whether the benchmark's official figures are those of re-aligned regions."""
    region_names: ClassVar[tuple[str, ...]] = ()
    """Names of the regions of its scans."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        if not names:
            raise FormatError(f"{folder}: no scans of the layout {self.layout!r}; the folder is incomplete.")

    @abstractmethod
    def scan(self, name: str) -> FaceScan:
        """Read the scan of one photo; FormatError if a file is missing or damaged."""

    @abstractmethod
    def person(self, name: str) -> str:
        """Name of the person whom a photo shows."""

    def people(self) -> dict[str, tuple[str, ...]]:
        """Names of the photos of each person."""
        photos: dict[str, list[str]] = {}
        for name in self.names:
            photos.setdefault(self.person(name), []).append(name)
        return {person: tuple(names) for person, names in photos.items()}


def open_pack(folder: Path) -> ScanPack:
    """Find out the layout of a folder of scans.

    Args:
        folder: mien's layout (`photos/ID.jpg`, `scans/ID.npz`), NoW's (`imagepathsvalidation.txt`, `scans`,
            `scans_lmks_onlypp`, `NoW_Dataset`) or REALY's (`REALY_HIFI3D_keypoints`, `REALY_scan_region`,
            `metrical_scale.txt`, and the photos in any folder).

    Raises:
        FormatError: The folder has another layout, or holds no scans.
    """
    if (folder / "REALY_scan_region").is_dir():
        return RealyScans.open(folder)
    if NowScans.list_of(folder) is not None:
        return NowScans.open(folder)
    if any((folder / "scans").glob("*.npz")):
        return OwnScans.open(folder)
    raise FormatError(
        f"{folder} holds no scans; expected scans/ID.npz with photos/ID.jpg, NoW's imagepathsvalidation.txt, or "
        "REALY's REALY_scan_region."
    )


class OwnScans(ScanPack):
    """mien's layout.

    `photos/ID.jpg` and, for each, `scans/ID.npz` in millimetres: `V`, `F` the scan; `P` the 3 × 4 camera of the photo,
    with the first pixel's centre at (0, 0); `lm2d`, `lm3d` MediaPipe's 468 points in the photo and on the scan (NaN in
    holes); `pts` the points that are measured, in random order; `pts_label` the number of the region of each.
    Photos whose names differ in a last letter after a digit show one person: p01a, p01b.
    """

    layout = "pack"
    region_names = PACK_REGIONS

    @classmethod
    def open(cls, folder: Path) -> OwnScans:
        """List the scans."""
        return cls(folder, tuple(sorted(path.stem for path in (folder / "scans").glob("*.npz"))))

    def scan(self, name: str) -> FaceScan:
        """Read one scan."""
        archive = NpzReader(self.folder / "scans" / f"{name}.npz")
        photo = _photo_named(self.folder / "photos", name)
        names = ("V", "F", "P", "lm2d", "lm3d", "pts", "pts_label")
        arrays = {key: numbers(archive.array(key), key, archive.path) for key in names}
        for key, shape in (("P", (3, 4)), ("lm2d", (468, 2)), ("lm3d", (468, 3))):
            if arrays[key].shape != shape:
                raise FormatError(f"{archive.path}: {key} has shape {arrays[key].shape}; expected {shape}.")
        camera = ScanCamera(arrays["P"].astype(np.float64), _photo_size(photo), arrays["lm2d"].astype(np.float64))
        return FaceScan(
            name,
            photo,
            surface_of(arrays["V"], arrays["F"], archive.path),
            _points(arrays["pts"]),
            PACK_REGIONS,
            torch.from_numpy(indices(arrays["pts_label"], "pts_label", archive.path)),
            landmarks7=_points(arrays["lm3d"])[list(_MEDIAPIPE_OF_SEVEN)],
            camera=camera,
        )

    def person(self, name: str) -> str:
        """The name without its last letter."""
        return re.sub(r"(?<=\d)[a-z]$", "", name)


class NowScans(ScanPack):
    """NoW's layout: a list of photos SUBJECT/CHALLENGE/NAME.jpg, and per subject one scan with 7 picked points."""

    layout = "now"
    pooled = True

    @staticmethod
    def list_of(folder: Path) -> Path | None:
        """The list of photos, that of the validation set first."""
        lists = [folder / f"imagepaths{part}.txt" for part in ("validation", "test")]
        return next((path for path in lists if path.is_file()), None)

    @classmethod
    def open(cls, folder: Path) -> NowScans:
        """List the photos."""
        listed = cls.list_of(folder)
        lines = [] if listed is None else read_text(listed).split()
        parts = [Path(line).with_suffix("").parts[-3:] for line in lines]
        return cls(folder, tuple("/".join(part) for part in parts if len(part) == 3))

    def scan(self, name: str) -> FaceScan:
        """Read one scan, cropped to NoW's sphere around the face."""
        subject = name.partition("/")[0]
        path = _only(self.folder / "scans" / subject, "*.obj")
        landmarks = read_picked_points(_only(self.folder / "scans_lmks_onlypp" / subject, "*.pp"))
        surface = surface_of(*read_obj(path), path)
        pictures = self.folder / "NoW_Dataset" / "final_release_version" / "iphone_pictures"
        photos = sorted((pictures / name).parent.glob(f"{Path(name).name}.*"))
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(surface.vertices)))
        shuffled = surface.vertices[order]
        points = shuffled[_in_now_sphere(shuffled, landmarks)]
        return FaceScan(name, photos[0] if photos else None, surface, points, landmarks7=landmarks, icp=_NOW_ICP)

    def person(self, name: str) -> str:
        """The subject."""
        return name.partition("/")[0]


def _in_now_sphere(points: Tensor, landmarks: Float[Tensor, "7 3"]) -> Tensor:
    """NoW's crop: a sphere around the nose, whose radius grows with the eyes' distance and the nose's length."""
    bridge, base = (landmarks[1] + landmarks[2]) / 2, landmarks[4]
    centre = base + 0.3 * (bridge - base)
    radius = 1.4 * ((landmarks[0] - landmarks[3]).norm() + (bridge - base).norm()) / 2
    return (points - centre).norm(dim=-1) <= radius


def read_picked_points(path: Path) -> Float[Tensor, "7 3"]:
    """The first seven points of a MeshLab .pp file; FormatError if there are fewer."""
    text = read_text(path, errors="replace")
    rows = []
    for tag in re.findall(r"<point\b([^>]*)>", text)[:7]:
        found = [re.search(rf'\b{axis}="([^"]*)"', tag) for axis in "xyz"]
        rows.append([match[1] for match in found if match])
    try:
        points = np.array(rows, np.float64)
    except ValueError as error:
        raise FormatError(f"{path}: a picked point is not three numbers ({error}).") from error
    if points.shape != (7, 3):
        raise FormatError(f"{path}: {len(rows)} picked points; expected 7 with x, y and z.")
    return torch.from_numpy(points)


class RealyScans(ScanPack):
    """REALY's layout: per subject 85 keypoints and the scan's regions, and a factor from their unit to millimetres."""

    layout = "realy"
    always_regional = True
    region_names = _REALY_REGIONS

    def __init__(self, folder: Path, photos: dict[str, Path]) -> None:
        super().__init__(folder, tuple(photos))
        self._photos = photos
        factors = read_numbers(folder / "metrical_scale.txt", advice="expected one factor per subject")
        self._millimetres = factors.reshape(-1)

    @classmethod
    def open(cls, folder: Path) -> RealyScans:
        """List the photos SUBJECT.* and SUBJECT_VIEW.* whose subject has a scan."""
        subjects = {path.name for path in (folder / "REALY_scan_region").iterdir() if path.is_dir()}
        photos = {path.stem: path for path in find_photos([folder]) if re.fullmatch(r"\d+(_\d+)?", path.stem)}
        names = sorted((name for name in photos if _subject(name) in subjects), key=_numbers)
        return cls(folder, {name: photos[name] for name in names})

    def scan(self, name: str) -> FaceScan:
        """Read one scan."""
        subject = _subject(name)
        if not 1 <= int(subject) <= len(self._millimetres):
            raise FormatError(f"{self.folder / 'metrical_scale.txt'} has no line for subject {subject}.")
        factor = float(self._millimetres[int(subject) - 1])
        keypoints_path = self.folder / "REALY_HIFI3D_keypoints" / f"{subject}.obj"
        keypoints = _points(_obj_points(keypoints_path)) * factor
        if len(keypoints) != REALY_KEYPOINT_COUNT:
            raise FormatError(f"{keypoints_path}: {len(keypoints)} keypoints; expected {REALY_KEYPOINT_COUNT}.")
        paths = [self.folder / "REALY_scan_region" / subject / f"{region}.obj" for region in _REALY_REGIONS]
        meshes = [surface_of(*read_obj(path), path) for path in paths]
        return FaceScan(
            name,
            self._photos[name],
            _joined(meshes, factor),
            torch.cat([mesh.vertices for mesh in meshes]) * factor,
            _REALY_REGIONS,
            torch.cat([torch.full((len(mesh.vertices),), k) for k, mesh in enumerate(meshes)]),
            landmarks7=keypoints[list(IBUG_OF_SEVEN)],
            keypoints=Keypoints(keypoints, _REALY_KEYPOINTS, _REALY_WEIGHTS, tolerance_mm2=1e-6 * factor**2),
            icp=_REALY_ICP,
        )

    def person(self, name: str) -> str:
        """The subject."""
        return _subject(name)


def _subject(name: str) -> str:
    return name.partition("_")[0]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("_"))


def _obj_points(path: Path) -> np.ndarray:
    """Vertices of an OBJ file that may have no faces."""
    return read_obj(path)[0]


def _joined(meshes: list[Surface], factor: float) -> Surface:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])]).tolist()
    triangles = torch.cat([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=True)])
    return Surface(torch.cat([mesh.vertices for mesh in meshes]) * factor, triangles)


def surface_of(vertices: np.ndarray, triangles: np.ndarray, path: Path) -> Surface:
    """A mesh in float64, without triangles that use a vertex that is not finite; FormatError if it is no mesh."""
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] not in {3, 4}:
        raise FormatError(f"{path}: vertices {vertices.shape} and triangles {triangles.shape} are not a mesh.")
    if triangles.shape[1] == 4:
        triangles = np.concatenate([triangles[:, [0, 1, 2]], triangles[:, [0, 2, 3]]])
    if len(triangles) and (triangles.min() < 0 or triangles.max() >= len(vertices)):
        raise FormatError(f"{path}: a triangle has a vertex that does not exist.")
    finite = np.asarray(np.isfinite(vertices).all(axis=-1))
    used = triangles[finite[triangles].all(axis=1)].astype(np.int64)
    if not len(used):
        raise FormatError(f"{path}: the mesh has no triangles.")
    return Surface(_points(np.where(finite[:, None], vertices, 0.0)), torch.from_numpy(used))


def _points(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FormatError(f"{folder}: no {pattern}; expected one.")
    return found[0]


def _photo_named(folder: Path, name: str) -> Path:
    found = [path for path in sorted(folder.glob(f"{name}.*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    if not found:
        raise FormatError(f"{folder}: no photo {name}.jpg or {name}.png.")
    return found[0]


def _photo_size(path: Path) -> tuple[int, int]:
    file_size(path)
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise FormatError(f"{path} is not a photo: {error}") from error
