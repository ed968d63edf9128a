"""`mien data prepare`: photos → perception → packed crops, in parallel, resumable, with a report.

The photos are divided into shards beforehand. A shard is written under another name and renamed when it is whole, so
whatever ends the process, the next run finds whole shards and makes the missing ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from mien.camera import DEFAULT_FOV_DEG, Camera
from mien.errors import ConfigError, FormatError, ImageError, MienError
from mien.export.contact_sheet import SheetLayout, in_rows
from mien.export.contact_sheet import contact_sheet as grid
from mien.io.files import remove_partial, write_text, write_whole, writing
from mien.io.photo import Photo, exposure_of, find_photos, read_photo
from mien.io.pixels import to_uint8
from mien.morphable.landmark_tables import MEDIAPIPE_NOSE_TIP, MEDIAPIPE_SIDES
from mien.perception import FaceDetection, FaceDetector, FaceParts, face_crop, face_parts
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
from mien.training.data.workers import each_done
from mien.typing import UInt8

LARGEST_SHARD, SMALLEST_SHARD, SHARDS = 256, 16, 64
"""Photos a shard: the most work that a kill costs a process, at most some 6 MB; about 64 shards in smaller stores."""
SHARD_NAMES = ("faces-*.tar", "faces-*.json")
SPLIT_SHARES = (0.70, 0.15, 0.15)
"""Training, validation, test, as in the paper."""
CACD_NAME = re.compile(r"^(?P<age>\d{1,3})_(?P<identity>.+)_(?P<number>\d+)$")
"""CACD2000: age_name_number, e.g. 53_Robert_Duvall_0001."""
SMALLEST_FACE_PX = 40.0
"""Longer side of the points' box below which a face is dropped: it would be blown up more than threefold."""
BLURRED, PROFILE, COVERED, DARK = 2e-4, 0.72, 0.45, 0.12
"""Variance of the crop's Laplacian; share of the nose's way to a side; share of visible skin; mean luminance."""
CONTACT_FACES, CONTACT_SIDE, CONTACT_COLUMNS = 48, 112, 8


@dataclass(frozen=True)
class PreparationSettings:
    """What decides the content of a store; a store can only be continued with the same."""

    split_by: str = "identity"
    """"identity": all photos of a person fall into one split, or the network is tested on faces that it has seen;
    "random": photo by photo, as the paper says."""
    seed: int = 0
    drop_flagged: bool = False
    """Whether blurred, covered, dark and profile faces are left out, and not only flagged."""

    def __post_init__(self) -> None:
        if self.split_by not in ("identity", "random"):
            raise ConfigError(f"split_by must be identity or random, got {self.split_by!r}.")


@dataclass(frozen=True)
class PhotoFacts:
    """What is known of a photo without looking at it."""

    path: str
    name: str
    """Path below the prepared folder."""
    identity: str
    age: int | None


@dataclass(frozen=True)
class Dropped:
    """A photo that is not in the store, and why."""

    photo: str
    reason: str


@dataclass(frozen=True)
class PreparationReport:
    """What became of the photos."""

    photos: int
    kept: int
    dropped: tuple[Dropped, ...]
    splits: dict[str, int]
    flags: dict[str, int]
    photos_per_second: float
    """Of this run; 0 if there was nothing left to do."""
    processes: int

    def hours(self, *, photos: int, cores: int) -> float:
        """Projected time for more photos on more cores, one process a core."""
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
        ]
        if self.photos_per_second:
            lines += [
                "",
                f"{self.photos_per_second:.2f} photos/s with {self.processes} processes; 160,000 photos would take "
                f"{self.hours(photos=160_000, cores=2):.1f} h on 2 cores and "
                f"{self.hours(photos=160_000, cores=16):.1f} h on 16.",
            ]
        return "\n".join(lines) + "\n"


def photo_facts(root: Path, *, table: Path | None = None, skip: Path | None = None) -> list[PhotoFacts]:
    """List the photos below a folder with identity and age; `skip` names a folder to leave out, that of the store.

    They come from `table` (a CSV with columns `file` and `identity` or `subject`, and optionally `age`), else from
    CACD's names, else a subfolder is a person, else each photo is one. FormatError for an unusable table, ImageError
    for a folder that is missing or empty.
    """
    if not root.is_dir():
        raise ImageError(f"{root} is not a folder; give the folder that holds the photos.")
    known = _read_table(table) if table is not None else {}
    facts = []
    for path in find_photos([root], skip=skip):
        name = path.relative_to(root).as_posix()
        cacd = CACD_NAME.match(path.stem)
        if name in known:
            identity, age = known[name]
        elif cacd is not None:
            identity, age = cacd["identity"], int(cacd["age"])
        else:
            parent = Path(name).parent.as_posix()
            identity, age = (parent if parent != "." else path.stem), None
        facts.append(PhotoFacts(str(path), name, identity, age))
    return facts


def _read_table(path: Path) -> dict[str, tuple[str, int | None]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        column = "identity" if rows and "identity" in rows[0] else "subject"
        return {row["file"]: (row[column], int(row["age"]) if row.get("age") else None) for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: a table needs the columns file and identity (or subject): {error}") from error


def split_of(facts: PhotoFacts, settings: PreparationSettings) -> Split:
    """The split that a photo falls into: a function of the seed and its identity (or name) alone."""
    subject = facts.identity if settings.split_by == "identity" else facts.name
    digest = _digest(f"{settings.seed}/{subject}")
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < SPLIT_SHARES[0]:
        return "train"
    return "validation" if share < SPLIT_SHARES[0] + SPLIT_SHARES[1] else "test"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()  # names of files need not be valid Unicode


def prepare(
    photos: Sequence[PhotoFacts],
    store: Path,
    *,
    settings: PreparationSettings,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> PreparationReport:
    """Fill a store with the faces of photos; what an earlier run finished is kept.

    `progress` is told how many of how many photos are done. ConfigError where the store was begun with other photos
    or settings, OutputError where it cannot be written, FormatError where a finished shard's rows are damaged.
    """
    size = min(max(-(-len(photos) // SHARDS), SMALLEST_SHARD), LARGEST_SHARD)
    shards = [photos[start : start + size] for start in range(0, len(photos), size)]
    _begin(store, photos, settings)
    missing = [k for k in range(len(shards)) if not _shard_path(store, k, "json").exists()]
    done = sum(len(shard) for k, shard in enumerate(shards) if k not in missing)
    at_start, start = done, time.perf_counter()
    processes = max(min(processes, len(missing)), 1)
    with writing(store, advice="what is finished is kept, so make room and run the command again"):
        calls = {k: (shards[k], store, k, settings) for k in missing}
        for number in each_done(_make_shard, calls, processes=processes):
            done += len(shards[number])
            if progress is not None:
                progress(done, len(photos))
        seconds = time.perf_counter() - start
        return _finish(store, len(shards), settings, rate=(done - at_start) / seconds, processes=processes)


def _begin(store: Path, photos: Sequence[PhotoFacts], settings: PreparationSettings) -> None:
    names = _digest("\n".join(f"{p.name}\t{p.identity}" for p in photos)).hex()
    plan = json.dumps({"settings": asdict(settings), "photos": names})
    path = store / "plan.json"
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, plan)
        if path.read_text(encoding="utf-8") != plan:
            raise ConfigError(
                f"{store} was begun with other photos or settings; finish those, or choose another place."
            )
        for names in SHARD_NAMES:
            remove_partial(store, names)


def _shard_path(store: Path, number: int, ending: str) -> Path:
    return store / f"faces-{number:06d}.{ending}"


_perception: FaceDetector | None = None


def _make_shard(photos: Sequence[PhotoFacts], store: Path, number: int, settings: PreparationSettings) -> None:
    """Observe the photos of one shard and write its tar and its rows; runs in a worker process."""
    rows = write_whole(
        _shard_path(store, number, "tar"), lambda partial: _write_shard(photos, partial, number, settings)
    )
    # The rows come last: a shard with rows is whole.
    write_text(_shard_path(store, number, "json"), rows)


def _write_shard(photos: Sequence[PhotoFacts], path: Path, number: int, settings: PreparationSettings) -> str:
    """Write the tar of a shard, and return its rows as JSON."""
    global _perception  # noqa: PLW0603  (three networks, loaded once a process)
    _perception = _perception or FaceDetector()
    shard = _shard_path(path.parent, number, "tar").name
    kept: list[StoredFace] = []
    dropped: list[Dropped] = []
    with path.open("wb") as file:
        for k, facts in enumerate(photos):
            key = f"{number:06d}-{k:03d}"
            try:
                record, flags = _observe(_perception, read_photo(facts.path))
            except MienError as error:
                dropped.append(Dropped(facts.name, f"{type(error).__name__}: {error}"))
                continue
            if isinstance(record, str) or (flags and settings.drop_flagged):
                dropped.append(Dropped(facts.name, record if isinstance(record, str) else ", ".join(flags)))
                continue
            notes = {"photo": facts.name, "identity": facts.identity, "age": facts.age, "flags": list(flags)}
            data = encode_record(key, record, notes=notes)
            row = StoredFace(
                key, shard, file.tell(), len(data), facts.name, facts.identity, facts.age,
                split_of(facts, settings), flags,
            )  # fmt: skip
            file.write(data)
            kept.append(row)
        file.write(b"\0" * 1024)  # the end of a tar archive
    return json.dumps({"faces": [asdict(row) for row in kept], "dropped": [asdict(row) for row in dropped]})


def _observe(perception: FaceDetector, photo: Photo) -> tuple[FaceRecord | str, tuple[str, ...]]:
    """The most prominent face, or the reason why there is none, and its flags."""
    found = perception.detect(photo.pixels, max_faces=1)
    if not found:
        return "no face", ()
    face = found[0]
    points = torch.from_numpy(face.landmarks468_px[:, :2])
    if float((points.amax(0) - points.amin(0)).max()) < SMALLEST_FACE_PX:
        return "face too small", ()
    crop = face_crop(points, size=STORE_SIZE, scale=FACE_CROP_SCALE * STORE_MARGIN)
    parts = face_parts(photo.pixels, face, crop)
    height, width = photo.pixels.shape[:2]
    camera = Camera.from_fov(DEFAULT_FOV_DEG, image_size=(height, width))
    focal = photo.focal_px or float(camera.focal_px[0])
    centre = crop.to_crop(camera.centre_px.double())[0]
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
    luminance = record.crop.mean(0)
    inside = parts.oval > 0.5
    laplacian = torch.nn.functional.conv2d(
        luminance[None, None], torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]), padding=1
    )[0, 0]
    right, left, nose = face.landmarks468_px[[*MEDIAPIPE_SIDES, MEDIAPIPE_NOSE_TIP], :2]
    across = left - right
    turned = abs(2 * float((nose - right) @ across / max(float(across @ across), 1e-6)) - 1)
    skin = float((parts.skin * inside).sum() / inside.sum().clamp(min=1))
    checks = {
        "blurred": float(laplacian[inside].var()) < BLURRED,
        "profile": turned > PROFILE,
        "covered": skin < COVERED,
        "dark": float(luminance[inside].mean()) < DARK,
    }
    return tuple(name for name, holds in checks.items() if holds)


def _finish(
    store: Path, shards: int, settings: PreparationSettings, *, rate: float, processes: int
) -> PreparationReport:
    kept: list[StoredFace] = []
    dropped: list[Dropped] = []
    for number in range(shards):
        path = _shard_path(store, number, "json")
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            kept += [StoredFace(**{**row, "flags": tuple(row["flags"])}) for row in rows["faces"]]
            dropped += [Dropped(**row) for row in rows["dropped"]]
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}: damaged ({error}); remove it and run the command again.") from error
    write_whole(store / INDEX_FILE, lambda partial: write_index(str(partial), kept, settings=asdict(settings)))
    report = PreparationReport(
        photos=len(kept) + len(dropped),
        kept=len(kept),
        dropped=tuple(dropped),
        splits=dict(Counter(row.split for row in kept)),
        flags=dict(Counter(flag for row in kept for flag in row.flags)),
        photos_per_second=rate,
        processes=processes,
    )
    (store / "report.md").write_text(report.text(), encoding="utf-8")
    with (store / "dropped.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([("photo", "reason"), *((row.photo, row.reason) for row in dropped)])
    if kept:
        Image.fromarray(contact_sheet(FaceStore(str(store)))).save(store / "contact_sheet.png")
    return report


def contact_sheet(store: FaceStore) -> UInt8[np.ndarray, "H W 3"]:
    """Faces evenly spread over a store with their points; what is not skin is dimmed."""
    chosen = np.unique(np.linspace(0, len(store) - 1, min(CONTACT_FACES, len(store))).round().astype(int))
    pictures = []
    for number in chosen:
        record = store[int(number)]
        shown = record.crop * (0.45 + 0.55 * record.mask)
        picture = Image.fromarray(to_uint8(shown.permute(1, 2, 0)))
        draw = ImageDraw.Draw(picture)
        for x, y in record.landmarks68_px.tolist():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(80, 255, 120))
        pictures.append(np.asarray(picture.resize((CONTACT_SIDE, CONTACT_SIDE), Image.Resampling.LANCZOS)))
    return grid(in_rows(pictures, CONTACT_COLUMNS), SheetLayout(), columns=CONTACT_COLUMNS)
