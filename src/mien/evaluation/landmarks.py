"""Error of 68 landmarks against manual annotation, and the reader of annotated folders.

NME is, per face, the mean distance of the points divided by the annotated distance of the outer eye corners (points 36
and 45). NME51 leaves out the jaw line (points 0 to 16). Faces that were not found have no NME; they are counted
separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mien.errors import ConfigError, FormatError, MienError
from mien.evaluation.report import markdown_table
from mien.io.npz import NpzReader, names_of, numbers
from mien.io.photo import read_photo
from mien.io.photo_files import find_photos
from mien.io.reading import read_text
from mien.morphable.landmark_tables import IBUG_INNER, IBUG_OUTER_EYE_CORNERS
from mien.perception import FaceDetector
from mien.pipeline import Reconstructor

FAILURE_NME = 0.10
"""A found face with a larger NME51 is a failure, the 300-W convention."""
AUC_LIMIT = 0.08
"""Upper limit of the cumulative error distribution whose area is reported, the 300-W convention."""
MINIMUM_OVERLAP = 0.2
"""Smallest intersection over union of landmark boxes for a detected face to count as the annotated one. Neighbours in a
group photo overlap less; one face predicted with an open and a closed mouth overlaps more."""


@dataclass(frozen=True)
class AnnotatedPhoto:
    """One photo with the annotated landmarks of one face."""

    path: Path
    """The photo."""
    group: str
    """Name of its set; results are reported per set."""
    landmarks_px: Float[np.ndarray, "68 2"]
    """iBUG landmarks; the centre of the first pixel is at (0.5, 0.5)."""


def read_annotated(folder: Path) -> list[AnnotatedPhoto]:
    """Read the annotated photos of a folder, in one of two layouts.

    Either the folder holds one or more `NAME.npz` (arrays `files`, `landmarks` and optionally `split`; pixel centres at
    integers), each beside a folder `NAME` of photos; then photos of the split "test" are read. If the photo folder
    `NAME` itself is given, photos of all splits are read. Or the folder holds photos with `.pts` files of the same name
    (the iBUG format, whose first pixel is (1, 1)).

    Args:
        folder: The folder.

    Raises:
        FormatError: The folder has another layout, or a file is damaged.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; give a folder with annotated photos.")
    beside = folder.with_suffix(".npz")
    if beside.exists():
        return _read_npz(beside, split=None)
    tables = sorted(folder.glob("*.npz"))
    photos = [photo for table in tables for photo in _read_npz(table, split="test")]
    photos += [
        AnnotatedPhoto(path, folder.name, _read_pts(path.with_suffix(".pts")))
        for path in (find_photos([folder]) if not tables else [])
        if path.with_suffix(".pts").exists()
    ]
    if not photos:
        raise FormatError(f"{folder} holds neither NAME.npz with a test split nor photos with .pts files.")
    return photos


def _read_npz(table: Path, *, split: str | None) -> list[AnnotatedPhoto]:
    archive = NpzReader(table)
    files = names_of(archive.array("files"), "files", table)
    landmarks = numbers(archive.array("landmarks"), "landmarks", table).astype(np.float64)
    if not files or landmarks.shape != (len(files), 68, 2):
        raise FormatError(f"{table}: landmarks has shape {landmarks.shape}; expected {(len(files), 68, 2)}.")
    splits = _splits(archive, len(files)) if "split" in archive else None
    prefix = table.parent if (table.parent / str(files[0])).exists() else table.with_suffix("")
    return [
        AnnotatedPhoto(prefix / str(file), table.stem, points + 0.5)
        for k, (file, points) in enumerate(zip(files, landmarks, strict=True))
        if split is None or splits is None or str(splits[k]) == split
    ]


def _splits(archive: NpzReader, count: int) -> tuple[str, ...]:
    """The split of each photo; one text stands for all."""
    stored = archive.array("split")
    splits = names_of(np.broadcast_to(stored, (count,)) if stored.ndim == 0 else stored, "split", archive.path)
    if len(splits) != count:
        raise FormatError(f"{archive.path}: split has {len(splits)} texts; expected one or {count}.")
    return splits


def _read_pts(path: Path) -> Float[np.ndarray, "68 2"]:
    text = read_text(path, errors="replace")
    body = text.partition("{")[2].partition("}")[0]
    try:
        points = np.array([[float(x) for x in line.split()] for line in body.strip().splitlines()])
    except ValueError as error:
        raise FormatError(f"{path} is not a .pts file: {error}") from error
    if points.shape != (68, 2) or not np.isfinite(points).all():
        raise FormatError(f"{path}: points have shape {points.shape}; expected (68, 2) and finite numbers.")
    return points - 0.5


def landmark_nme(predicted: Float[np.ndarray, "68 2"], gt: Float[np.ndarray, "68 2"], *, inner: bool) -> float:
    """Mean point distance divided by the annotated distance of the outer eye corners.

    Args:
        predicted: Predicted landmarks, pixels.
        gt: Annotated landmarks, pixels.
        inner: Use the 51 points without the jaw line.
    """
    chosen = IBUG_INNER if inner else slice(None)
    distances = np.linalg.norm(predicted - gt, axis=-1)[chosen]
    right, left = gt[list(IBUG_OUTER_EYE_CORNERS)]
    return float(distances.mean() / np.linalg.norm(right - left))


def area_under_ced(errors: Float[np.ndarray, "P"], *, limit: float = AUC_LIMIT) -> float:
    """Area under the cumulative error distribution up to `limit`, 0 to 1; infinite errors are faces not found."""
    return float(np.clip(limit - errors, 0, None).mean() / limit) if len(errors) else 0.0


def matching_face(found: Sequence[Float[np.ndarray, "68 2"]], gt: Float[np.ndarray, "68 2"]) -> int | None:
    """Index of the detected face that is the annotated one, by overlap of landmark boxes; None if there is none."""
    overlaps = [_overlap(points, gt) for points in found]
    best = int(np.argmax(overlaps)) if overlaps else -1
    return best if best >= 0 and overlaps[best] >= MINIMUM_OVERLAP else None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    (low_a, high_a), (low_b, high_b) = ((p.min(0), p.max(0)) for p in (a, b))
    shared = np.prod(np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None))
    union = np.prod(high_a - low_a) + np.prod(high_b - low_b) - shared
    return float(shared / union) if union > 0 else 0.0


@dataclass(frozen=True)
class LandmarkErrors:
    """Errors of one source of landmarks on one photo."""

    nme68: float
    """NME of all points."""
    nme51: float
    """NME without the jaw line."""

    @classmethod
    def of(cls, predicted: Float[np.ndarray, "68 2"], gt: Float[np.ndarray, "68 2"]) -> LandmarkErrors:
        """Compare predicted points with the annotated ones."""
        return cls(landmark_nme(predicted, gt, inner=False), landmark_nme(predicted, gt, inner=True))


@dataclass(frozen=True)
class LandmarkRow:
    """Result of one photo."""

    file: str
    """File name of the photo."""
    group: str
    """Name of its set."""
    raw: LandmarkErrors | None
    """Errors of the detected landmarks; None if the face was not found."""
    model: LandmarkErrors | None
    """Errors of the reconstruction's landmarks; None if it was not requested or failed."""
    reason: str = ""
    """Why a photo has no errors."""


@dataclass(frozen=True)
class LandmarkSummary:
    """Figures of one set and one source; NME as a fraction of the outer eye corner distance, over found faces."""

    group: str
    """Name of the set."""
    source: str
    """"perception" or "model"."""
    photos: int
    """Number of photos."""
    found: int
    """Number of faces found."""
    nme51: float
    """Mean NME without the jaw line."""
    nme51_median: float
    """Its median."""
    nme51_p90: float
    """Its 90th percentile."""
    nme68: float
    """Mean NME of all points."""
    failures: int
    """Faces not found, or found with an NME51 above 10 %."""
    auc51: float
    """`area_under_ced` of NME51 over all photos."""


@dataclass(frozen=True)
class LandmarkReport:
    """Landmark errors of a folder."""

    rows: tuple[LandmarkRow, ...]
    """One row per photo."""
    with_model: bool
    """Whether reconstructions were measured too."""

    def summaries(self) -> tuple[LandmarkSummary, ...]:
        """One summary per set and source, in the order of the photos."""
        groups = list(dict.fromkeys(row.group for row in self.rows))
        sources = ["perception", "model"] if self.with_model else ["perception"]
        return tuple(self._summary(group, source) for group in groups for source in sources)

    def _summary(self, group: str, source: str) -> LandmarkSummary:
        rows = [row for row in self.rows if row.group == group]
        errors = [row.raw if source == "perception" else row.model for row in rows]
        nme51 = np.array([np.inf if e is None else e.nme51 for e in errors])
        nme68 = np.array([e.nme68 for e in errors if e is not None])
        found = np.isfinite(nme51)
        known = nme51[found] if found.any() else np.array([np.nan])
        return LandmarkSummary(
            group=group,
            source=source,
            photos=len(rows),
            found=int(found.sum()),
            nme51=float(known.mean()),
            nme51_median=float(np.median(known)),
            nme51_p90=float(np.quantile(known, 0.9)),
            nme68=float(nme68.mean()) if len(nme68) else float("nan"),
            failures=int((nme51 > FAILURE_NME).sum()),
            auc51=area_under_ced(nme51),
        )

    def table(self) -> str:
        """The summaries as a Markdown table."""
        header = [
            "set, source", "photos", "found %", "NME51 %", "median", "p90", "NME68 %",
            "failures (> 10 % or not found)", "AUC51@8 %",
        ]  # fmt: skip
        rows = [
            [
                f"{s.group}, {s.source}",
                s.photos,
                f"{100 * s.found / s.photos:.1f}",
                *(f"{100 * value:.2f}" for value in (s.nme51, s.nme51_median, s.nme51_p90, s.nme68)),
                s.failures,
                f"{100 * s.auc51:.1f}",
            ]
            for s in self.summaries()
        ]
        return markdown_table(header, rows)


def evaluate_landmarks(
    folder: Path,
    *,
    reconstructor: Reconstructor | None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LandmarkReport:
    """Measure landmark errors on the photos of a folder.

    Photos that cannot be read or show no face become rows with a reason; they raise no error.

    Args:
        folder: Folder of `read_annotated`.
        reconstructor: Also measures the landmarks of its reconstructions, if given.
        limit: Maximum number of photos per set, evenly spaced.
        progress: Called after each photo with the number of photos done and in total.

    Returns:
        Errors per photo.

    Raises:
        FormatError: The folder holds no annotated photos.
        ConfigError: `limit` is below 1.
    """
    photos = read_annotated(folder)
    if limit is not None:
        photos = spread_over_groups(photos, limit=limit)
    perception = FaceDetector() if reconstructor is None else reconstructor.detector
    rows = []
    for done, photo in enumerate(photos):
        rows.append(_measure(photo, perception, reconstructor))
        if progress is not None:
            progress(done + 1, len(photos))
    return LandmarkReport(tuple(rows), with_model=reconstructor is not None)


def spread_over_groups(photos: Sequence[AnnotatedPhoto], *, limit: int) -> list[AnnotatedPhoto]:
    """At most `limit` photos per set, evenly spaced; ConfigError for a limit below 1."""
    if limit < 1:
        raise ConfigError(f"limit={limit} is too small; use at least 1.")
    chosen = []
    for group in dict.fromkeys(photo.group for photo in photos):
        members = [photo for photo in photos if photo.group == group]
        picked = np.unique(np.linspace(0, len(members) - 1, min(limit, len(members))).round().astype(int))
        chosen += [members[k] for k in picked]
    return chosen


def _measure(annotated: AnnotatedPhoto, perception: FaceDetector, reconstructor: Reconstructor | None) -> LandmarkRow:
    gt = annotated.landmarks_px
    name = annotated.path.name
    try:
        image = read_photo(annotated.path).pixels
        points = [face.landmarks68_px for face in perception.detect(image)]
        best = matching_face(points, gt)
        raw = None if best is None else LandmarkErrors.of(points[best], gt)
        model = None
        if reconstructor is not None and raw is not None:
            fitted = [face.landmarks68 for face in reconstructor(image)]
            best = matching_face(fitted, gt)
            model = None if best is None else LandmarkErrors.of(fitted[best], gt)
    except MienError as error:
        return LandmarkRow(name, annotated.group, None, None, f"{type(error).__name__}: {error}")
    reason = "" if raw is not None else f"{len(points)} faces found, but not the annotated one"
    return LandmarkRow(name, annotated.group, raw, model, reason)
