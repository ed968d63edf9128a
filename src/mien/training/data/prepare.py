"""`mien data prepare`: detects the faces of photos and packs their crops into a store, in parallel and resumable.

The photos are divided into shards beforehand. A shard is written under a temporary name and renamed when it is
complete. Therefore a run that is interrupted in any way leaves complete shards, and the next run makes the others.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from PIL import Image

from mien.errors import ConfigError, FormatError, ImageError, MienError
from mien.io.files import write_text, write_whole, writing
from mien.io.folder_lock import locked_folder
from mien.io.photo import Photo, exposure_of
from mien.io.photo_arguments import photo_at, read_argument
from mien.io.photo_files import find_photos
from mien.io.reading import read_csv, read_json, read_text
from mien.io.tables import write_table
from mien.memory import typed_out_of_memory
from mien.morphable.landmark_tables import MEDIAPIPE_NOSE_TIP, MEDIAPIPE_SIDES
from mien.perception import FaceDetection, FaceDetector, FaceParts, face_crop, face_parts, typical_focal_px
from mien.perception.crops import FACE_CROP_SCALE, sample_pixels
from mien.training.data.store import (
    INDEX_FILE,
    STORE_MARGIN,
    STORE_SIZE,
    FaceRecord,
    FaceStore,
    Split,
    StoredFace,
    encode_record,
    write_index,
)
from mien.training.data.store_sheet import store_sheet
from mien.training.data.workers import run_calls

LARGEST_SHARD, SMALLEST_SHARD, SHARDS = 256, 16, 64
"""Photos per shard: the work that a process loses when it is killed, at most about 6 MB. A store of up to 16,384 photos
has at most 64 shards."""
SPLIT_SHARES = (0.70, 0.15, 0.15)
"""Shares of training, validation and test, as in the paper."""
CACD_NAME = re.compile(r"^(?P<age>\d{1,3})_(?P<identity>.+)_(?P<number>\d+)$")
"""File names of CACD2000: age_name_number, e.g. 53_First_Last_0001."""
SMALLEST_FACE_PX = 40.0
"""Longer side of the points' bounding box below which a face is dropped: its crop would be enlarged over threefold."""
BLURRED_BELOW = 2e-4
"""Variance of the crop's Laplacian inside the face oval below which a face is flagged as blurred."""
PROFILE_ABOVE = 0.72
"""Position of the nose between the middle (0) and a side (1) of the oval above which a face is flagged as profile."""
COVERED_BELOW = 0.45
"""Share of visible skin inside the oval below which a face is flagged as covered."""
DARK_BELOW = 0.12
"""Mean of R, G and B inside the oval below which a face is flagged as dark."""
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class PreparationSettings:
    """What decides the content of a store; a store can only be continued with the same settings.

    Raises:
        ConfigError: `split_by` is neither "identity" nor "random".
    """

    split_by: str = "identity"
    """"identity": all photos of a person are in one split, so that no network is tested on people that it was trained
    on. "random": photo by photo, as in the paper."""
    seed: int = 0
    """Decides which people or photos are in which split."""
    drop_flagged: bool = False
    """Leave out blurred, covered, dark and profile faces instead of only flagging them."""

    def __post_init__(self) -> None:
        if self.split_by not in ("identity", "random"):
            raise ConfigError(f"split_by={self.split_by!r} is unknown; use identity or random.")


@dataclass(frozen=True)
class PhotoEntry:
    """What is known about a photo before it is opened."""

    path: str
    """Path or address of the file."""
    name: str
    """Path below the prepared folder, or the entry of the manifest."""
    identity: str
    """Name or code of the person."""
    age: int | None
    """Years; None if unknown."""


@dataclass(frozen=True)
class DroppedPhoto:
    """A photo that is not in the store."""

    photo: str
    """Path below the prepared folder."""
    reason: str
    """Why it was left out."""


@dataclass(frozen=True)
class PreparationReport:
    """Counts of a finished store."""

    photos: int
    """Photos in total."""
    kept: int
    """Faces in the store."""
    dropped: tuple[DroppedPhoto, ...]
    """Photos that are not in the store."""
    splits: dict[str, int]
    """Faces per split."""
    flags: dict[str, int]
    """Faces per flag; a face may have several."""
    people: int
    """Number of people in the store."""
    single: int
    """Number of people with one face only, which no loss of photos of one person can use."""
    photos_per_second: float
    """Speed of this run; 0 if there was nothing left to do."""
    processes: int
    """Number of processes of this run."""

    def hours(self, *, photos: int, cores: int) -> float:
        """Projected hours for `photos` photos, one process per core; NaN without a measured speed."""
        rate = self.photos_per_second / self.processes * cores
        return photos / rate / 3600 if rate > 0 else float("nan")

    def text(self) -> str:
        """The report as Markdown."""
        reasons = Counter(drop.reason.split(":")[0] for drop in self.dropped)
        lines = [
            f"{self.photos} photos, {self.kept} kept, {len(self.dropped)} dropped",
            "",
            *(f"- dropped, {reason}: {count}" for reason, count in reasons.most_common()),
            *(f"- flagged, {flag}: {count}" for flag, count in self.flags.items()),
            *(f"- {split}: {count}" for split, count in self.splits.items()),
            f"- people: {self.people}, {self.single} of them with one face",
        ]
        if self.photos_per_second:
            lines += [
                "",
                f"{self.photos_per_second:.2f} photos/s with {self.processes} processes; 160,000 photos would take "
                f"{self.hours(photos=160_000, cores=2):.1f} h on 2 cores and "
                f"{self.hours(photos=160_000, cores=16):.1f} h on 16.",
            ]
        return "\n".join(lines) + "\n"


def list_photos(root: Path, *, table: Path | None = None, skip: Path | None = None) -> list[PhotoEntry]:
    """List the photos below a folder with their identities and ages.

    Identity and age come from the table; for a photo that is not in it, from a file name of CACD2000; otherwise each
    subfolder is one person, and each photo directly in the folder is another person. Ages are then unknown. A row
    without an identity counts as if the table did not name the person.

    Args:
        root: Folder of the photos, searched to any depth.
        table: CSV with the columns `file` and `identity` (or `subject`), and optionally `age`.
        skip: Folder to leave out, e.g. a store inside `root`.

    Raises:
        ImageError: The folder is missing or has no photos.
        FormatError: The table cannot be used.
    """
    if not root.is_dir():
        raise ImageError(f"{root} is not a folder; give the folder of the photos.")
    named = [(str(path), path.relative_to(root).as_posix()) for path in find_photos([root], skip=skip)]
    return photo_entries(named, table=table)


def photo_entries(photos: Iterable[tuple[str, str]], *, table: Path | None = None) -> list[PhotoEntry]:
    """Find the identities and ages of photos as `list_photos` does.

    Args:
        photos: Path or address of each photo, and its name in the table; folders in the name are people.
        table: As in `list_photos`.

    Raises:
        FormatError: The table cannot be used.
    """
    known = _read_table(table) if table is not None else {}
    entries = []
    for path, name in photos:
        inner = PurePosixPath(name)
        cacd = CACD_NAME.match(inner.stem)
        if cacd is not None:
            identity, age = cacd["identity"], int(cacd["age"])
        else:
            parent = inner.parent.as_posix()
            identity, age = (parent if parent != "." else inner.stem), None
        if name in known:
            identity, age = known[name].identity or identity, known[name].age
        entries.append(PhotoEntry(path, name, identity, age))
    return entries


class _TableRow(NamedTuple):
    identity: str
    """Empty if the table does not name the person."""
    age: int | None


def _read_table(path: Path) -> dict[str, _TableRow]:
    advice = "give a CSV file with the columns file and identity (or subject)"
    names, rows = read_csv(path, advice=advice)
    column = "identity" if "identity" in names else "subject"
    known: dict[str, _TableRow] = {}
    try:
        for cells in rows:
            row = dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=True))
            known[row["file"]] = _TableRow(row[column].strip(), int(row["age"]) if row.get("age") else None)
    except (KeyError, ValueError) as error:
        raise FormatError(f"{path} cannot be used (row {len(known) + 1}: {error}); {advice}.") from error
    return known


def assign_split(photo: PhotoEntry, settings: PreparationSettings) -> Split:
    """The split of a photo: a function of the seed and its identity (or name) alone."""
    subject = photo.identity if settings.split_by == "identity" else photo.name
    digest = _digest(f"{settings.seed}/{subject}")
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < SPLIT_SHARES[0]:
        return "train"
    return "validation" if share < SPLIT_SHARES[0] + SPLIT_SHARES[1] else "test"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()  # file names may be invalid Unicode


def prepare(
    photos: Sequence[PhotoEntry],
    store: Path,
    *,
    settings: PreparationSettings,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
    run: Callable[..., Iterator[int]] = run_calls,
    shards_at: str | None = None,
) -> PreparationReport:
    """Fill a store with the faces of photos; finished shards of an earlier run are kept.

    Args:
        photos: The photos, in the order of the store.
        store: Folder of the store; made if it does not exist.
        settings: Must equal those of an earlier run.
        processes: Number of processes.
        progress: Called with the number of finished photos and the total number.
        run: What makes the shards, with the arguments of `run_calls`; an entry of `calls` has those of `make_shard`.
        shards_at: Address where `run` puts the tars; None for the store's folder, which always has the other files.

    Returns:
        Counts and speed; the same is written to report.md and dropped.csv.

    Raises:
        ConfigError: The store was started with other photos or settings.
        OutputError: The store cannot be written, or another process writes it.
        FormatError: The rows of a finished shard are damaged.

    Example:
        >>> photos = list_photos(Path("photos"))
        >>> report = prepare(photos, Path("out/store"), settings=PreparationSettings(), processes=2)
        >>> report.kept, report.splits
        (3, {'train': 2, 'test': 1})
    """
    size = min(max(-(-len(photos) // SHARDS), SMALLEST_SHARD), LARGEST_SHARD)
    shards = [photos[start : start + size] for start in range(0, len(photos), size)]
    advice = "finished shards are kept, so free some space and run the command again"
    with locked_folder(store), writing(store, advice=advice):
        _open_store(store, photos, settings)
        missing = [k for k in range(len(shards)) if not _shard_path(store, k, "json").exists()]
        done = sum(len(shard) for k, shard in enumerate(shards) if k not in missing)
        at_start, start = done, time.perf_counter()
        processes = max(min(processes, len(missing)), 1)
        calls = {k: (shards[k], store, k, settings, {}) for k in missing}
        for number in run(make_shard, calls, processes=processes):
            done += len(shards[number])
            if progress is not None:
                progress(done, len(photos))
        seconds = time.perf_counter() - start
        rate = (done - at_start) / seconds
        shards_at = shards_at or str(store)
        return _write_summary(store, len(shards), settings, rate=rate, processes=processes, shards_at=shards_at)


def _open_store(store: Path, photos: Sequence[PhotoEntry], settings: PreparationSettings) -> None:
    """Write the plan of a new store, or check that of an old one."""
    names = _digest("\n".join(f"{p.name}\t{p.identity}" for p in photos)).hex()
    plan = json.dumps({"settings": asdict(settings), "photos": names})
    path = store / "plan.json"
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, plan)
        if read_text(path, advice="remove it to start the store again") != plan:
            raise ConfigError(
                f"{store} was started with other photos or settings; use the same ones, or choose another folder."
            )


def _shard_path(store: Path, number: int, ending: str) -> Path:
    return store / f"faces-{number:06d}.{ending}"


_detector: FaceDetector | None = None


def make_shard(
    photos: Sequence[PhotoEntry],
    store: Path,
    number: int,
    settings: PreparationSettings,
    refused: Mapping[str, str],
) -> None:
    """Write the tar and the rows of one shard; runs in a worker process. Refused photos have names and reasons."""
    tar = _shard_path(store, number, "tar")
    rows = write_whole(tar, lambda partial: _write_shard(photos, partial, number, settings, refused))
    # The rows come last: a shard with rows is complete.
    write_text(_shard_path(store, number, "json"), rows)


def _write_shard(
    photos: Sequence[PhotoEntry], path: Path, number: int, settings: PreparationSettings, refused: Mapping[str, str]
) -> str:
    """Write the tar of a shard, and return its rows as JSON."""
    shard = _shard_path(path.parent, number, "tar").name
    kept: list[StoredFace] = []
    dropped: list[DroppedPhoto] = []
    with path.open("wb") as file:
        for k, photo in enumerate(photos):
            record, flags = (refused[photo.name], ()) if photo.name in refused else read_face(photo)
            if isinstance(record, str) or (flags and settings.drop_flagged):
                dropped.append(DroppedPhoto(photo.name, record if isinstance(record, str) else ", ".join(flags)))
                continue
            key, age = f"{number:06d}-{k:03d}", photo.age
            notes = {"photo": photo.name, "identity": photo.identity, "age": age, "flags": list(flags)}
            data = encode_record(key, record, notes=notes)
            split = assign_split(photo, settings)
            row = StoredFace(key, shard, file.tell(), len(data), photo.name, photo.identity, age, split, flags)
            file.write(data)
            kept.append(row)
        file.write(b"\0" * 1024)  # the end of a tar archive
    return json.dumps({"faces": [asdict(row) for row in kept], "dropped": [asdict(row) for row in dropped]})


def read_face(photo: PhotoEntry) -> tuple[FaceRecord | str, tuple[str, ...]]:
    """The face of a photo and its flags, or the reason why there is none."""
    global _detector  # noqa: PLW0603  (three networks, loaded once per process)
    _detector = _detector or FaceDetector()
    try:
        return _detect_face(_detector, read_argument(photo_at(photo.path)))
    except MienError as error:
        return f"{type(error).__name__}: {error}", ()


@typed_out_of_memory
def _detect_face(detector: FaceDetector, photo: Photo) -> tuple[FaceRecord | str, tuple[str, ...]]:
    """The most prominent face and its flags, or the reason why there is none."""
    detections = detector.detect(photo.pixels, max_faces=1)
    if not detections:
        return "no face", ()
    face = detections[0]
    points = torch.from_numpy(face.landmarks468_px[:, :2])
    if float((points.amax(0) - points.amin(0)).max()) < SMALLEST_FACE_PX:
        return "face too small", ()
    crop = face_crop(points, size=STORE_SIZE, scale=FACE_CROP_SCALE * STORE_MARGIN)
    parts = face_parts(photo.pixels, face, crop)
    height, width = photo.pixels.shape[:2]
    middle = width / 2, height / 2
    focal = photo.focal_px or typical_focal_px(face.landmarks468_px, image_size=(height, width), centre_px=middle)
    centre = crop.to_crop(torch.tensor([middle], dtype=torch.float64))[0]
    record = FaceRecord(
        crop=sample_pixels(photo.pixels, crop)[0],
        mask=parts.skin,
        landmarks68_px=crop.to_crop(torch.from_numpy(face.landmarks68_px)).float(),
        landmarks468_px=crop.to_crop(points).float(),
        focal_px=focal / crop.scale,
        centre_px=(float(centre[0]), float(centre[1])),
        exposure=exposure_of(photo.pixels),
    )
    return record, _flags(face, record, parts)


def _flags(face: FaceDetection, record: FaceRecord, parts: FaceParts) -> tuple[str, ...]:
    """Names of the doubts about a face's quality."""
    brightness = record.crop.mean(0)
    inside = parts.oval > 0.5
    laplacian = torch.nn.functional.conv2d(brightness[None, None], torch.tensor([[LAPLACIAN]]), padding=1)[0, 0]
    right, left, nose = face.landmarks468_px[[*MEDIAPIPE_SIDES, MEDIAPIPE_NOSE_TIP], :2]
    across = left - right
    turned = abs(2 * float((nose - right) @ across / max(float(across @ across), 1e-6)) - 1)
    skin = float((parts.skin * inside).sum() / inside.sum().clamp(min=1))
    checks = {
        "blurred": float(laplacian[inside].var()) < BLURRED_BELOW,
        "profile": turned > PROFILE_ABOVE,
        "covered": skin < COVERED_BELOW,
        "dark": float(brightness[inside].mean()) < DARK_BELOW,
    }
    return tuple(name for name, holds in checks.items() if holds)


def _write_summary(
    store: Path, shards: int, settings: PreparationSettings, *, rate: float, processes: int, shards_at: str
) -> PreparationReport:
    """Write the index, report.md, dropped.csv and the contact sheet of a store whose shards are complete."""
    kept, dropped = _read_rows(store, shards)
    faces_of = Counter(row.identity for row in kept)
    write_whole(store / INDEX_FILE, lambda partial: write_index(str(partial), kept, settings=asdict(settings)))
    report = PreparationReport(
        photos=len(kept) + len(dropped),
        kept=len(kept),
        dropped=tuple(dropped),
        splits=dict(Counter(row.split for row in kept)),
        flags=dict(Counter(flag for row in kept for flag in row.flags)),
        people=len(faces_of),
        single=sum(count == 1 for count in faces_of.values()),
        photos_per_second=rate,
        processes=processes,
    )
    write_text(store / "report.md", report.text())
    rows = [("photo", "reason"), *((row.photo, row.reason) for row in dropped)]
    write_whole(store / "dropped.csv", lambda partial: write_table(partial, rows))
    if kept:
        faces = FaceStore(str(store))
        faces.address = shards_at
        write_whole(store / "contact_sheet.png", Image.fromarray(store_sheet(faces)).save)
    return report


@dataclass(frozen=True)
class _ShardRows:
    """The rows of a shard."""

    faces: list[StoredFace]
    dropped: list[DroppedPhoto]


def _read_rows(store: Path, shards: int) -> tuple[list[StoredFace], list[DroppedPhoto]]:
    kept: list[StoredFace] = []
    dropped: list[DroppedPhoto] = []
    for number in range(shards):
        rows = read_json(_shard_path(store, number, "json"), _ShardRows, advice="remove it and run the command again")
        kept += rows.faces
        dropped += rows.dropped
    return kept, dropped
