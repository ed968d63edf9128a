"""Face crops packed in tar shards, on disk or in object storage, with an index for random access.

    STORE/index.json          format, settings, and per face: shard, byte range, identity, age, split, flags
    STORE/faces-000012.tar    KEY.jpg (crop with margin), KEY.mask.png (skin), KEY.points.npy (68, then 468 points),
                              KEY.json (camera, names)

The members of a face are adjacent, so one ranged read fetches the face. Random access makes the order of training a
pure function of seed and step, which WebDataset's streaming cannot do; WebDataset can still read the shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import fsspec
import numpy as np
import torch

from mien.errors import BackendUnavailable, ConfigError, FormatError
from mien.io.npz import parse_npy
from mien.io.reading import file_size, parse_json
from mien.training.data.images import decode_image, encode_image
from mien.typing import Float, Tensor

FORMAT = "mien-store-1"
INDEX_FILE = "index.json"
STORE_SIZE = 280
"""Side of the stored crops, pixels."""
MAX_INDEX_BYTES, MAX_RECORD_BYTES = 1 << 30, 16 << 20
"""Limits of index.json, which has about 250 bytes per face, and of a face, which has about 25 kB."""
STORE_MARGIN = 1.25
"""Their side in sides of a face crop: room to shift and turn the crop; the face crop itself has 224 pixels."""
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class StoredFace:
    """One row of the index."""

    key: str
    """Name of its members in the shard, before the suffix."""
    shard: str
    """File name of the shard."""
    offset: int
    """First byte of its members in the shard."""
    length: int
    """Bytes of its members together."""
    photo: str
    """Path of the photo below the prepared folder."""
    identity: str
    """Name or code of the person."""
    age: int | None
    """Years; None if unknown."""
    split: Split
    """The part of the data that it belongs to."""
    flags: tuple[str, ...]
    """Doubts about its quality: blurred, profile, covered, dark."""

    def __post_init__(self) -> None:
        if self.offset < 0 or not 0 < self.length <= MAX_RECORD_BYTES or "/" in self.shard or "\\" in self.shard:
            raise ConfigError(
                f"face {self.key!r} is at byte {self.offset} of {self.shard!r} and has {self.length} bytes; expected a "
                f"file name, a byte from 0 and at most {MAX_RECORD_BYTES} bytes."
            )


@dataclass(frozen=True)
class _Index:
    """index.json."""

    format: str
    faces: tuple[StoredFace, ...] = ()


@dataclass(frozen=True)
class _RecordedCamera:
    """KEY.json of a face, as far as it is read."""

    focal_px: float
    centre_px: tuple[float, float]
    exposure: float

    def __post_init__(self) -> None:
        if self.focal_px <= 0:
            raise ConfigError(f"focal_px={self.focal_px:g} must be positive.")


@dataclass(frozen=True)
class FaceRecord:
    """One face as the store holds it; points and camera are in pixels of the crop."""

    crop: Float[Tensor, "3 S S"]
    """RGB in [0, 1]: the face crop with its margin (`STORE_MARGIN`)."""
    mask: Float[Tensor, "S S"]
    """Confidence that a pixel shows the face's skin, 0 to 1."""
    landmarks68_px: Float[Tensor, "68 2"]
    """The 68 landmarks as detected."""
    landmarks468_px: Float[Tensor, "468 2"]
    """The 468 points as detected."""
    focal_px: float
    """Focal length in pixels of the crop."""
    centre_px: tuple[float, float]
    """Principal point of the photo in pixels of the crop; usually outside it."""
    exposure: float
    """Brightness of the whole photo, see `FitTargets`."""


def encode_record(key: str, record: FaceRecord, *, notes: dict[str, object]) -> bytes:
    """The tar members of one face, without the end of an archive.

    Args:
        key: Name of the members, before their suffixes.
        record: The face.
        notes: Further entries of its JSON member.
    """
    points = torch.cat([record.landmarks68_px, record.landmarks468_px]).numpy().astype(np.float32)
    camera = {"focal_px": record.focal_px, "centre_px": list(record.centre_px), "exposure": record.exposure}
    members = {
        f"{key}.jpg": encode_image(record.crop.permute(1, 2, 0), "JPEG", quality=92),
        f"{key}.mask.png": encode_image(record.mask, "PNG"),
        f"{key}.points.npy": _array_bytes(points),
        f"{key}.json": json.dumps({**camera, **notes}).encode(),
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        end = archive.offset
    return stream.getvalue()[:end]


def decode_record(data: bytes, *, name: str = "a record of the store") -> FaceRecord:
    """The face that `encode_record` wrote.

    Args:
        data: The bytes.
        name: Which face it is, the begin of the message.

    Raises:
        FormatError: The bytes are anything else.
    """
    advice = "prepare the photos again"
    try:
        parts = _members(data)
        points = parse_npy(parts["points.npy"], "points.npy", name)
        camera = parse_json(parts["json"], _RecordedCamera, name, advice=advice)
        crop, mask = (decode_image(parts[part]) for part in ("jpg", "mask.png"))
    except (tarfile.TarError, KeyError, ValueError, OSError, IndexError) as error:
        raise FormatError(f"{name} is damaged ({error}); {advice}.") from error
    side = len(mask)
    if crop.shape != (side, side, 3) or mask.shape != (side, side):
        shapes = f"{tuple(crop.shape)} and {tuple(mask.shape)}"
        raise FormatError(f"{name}: crop and mask have the shapes {shapes}; expected equal squares; {advice}.")
    if points.dtype != np.float32 or points.shape != (68 + 468, 2) or not np.isfinite(points).all():
        found = f"{points.dtype} {points.shape}"
        raise FormatError(f"{name}: the points are {found}; expected finite float32 (536, 2); {advice}.")
    return FaceRecord(
        crop=crop.permute(2, 0, 1),
        mask=mask,
        landmarks68_px=torch.from_numpy(points[:68]),
        landmarks468_px=torch.from_numpy(points[68:]),
        focal_px=camera.focal_px,
        centre_px=camera.centre_px,
        exposure=camera.exposure,
    )


def _members(data: bytes) -> dict[str, bytes]:
    """The members of a face's part of a shard by suffix. Sparse members, whose size is not that of their bytes, are not
    read."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        files = [member for member in archive if member.isreg() and not member.issparse()]
        return {m.name.split(".", 1)[1]: cast(io.BufferedReader, archive.extractfile(m)).read() for m in files}


def _array_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_index(path: str, faces: Sequence[StoredFace], *, settings: dict[str, object]) -> None:
    """Write the index of a store.

    Args:
        path: A path or any address that fsspec can write to.
        faces: The rows, in the order of the store.
        settings: What the store was prepared with, kept for readers.
    """
    rows = [asdict(face) for face in faces]
    with fsspec.open(path, "wt", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "settings": settings, "faces": rows}, cast(io.TextIOBase, file))


class FaceStore:
    """The faces of a store, or of one of its splits; `store[k]` reads one face.

    Args:
        address: A folder, or any address that fsspec can read (s3://, gs://, https://).
        split: The split to read; None reads all faces.

    Attributes:
        faces: The rows of the index.
        fingerprint: SHA-256 of the index, by which a resumed run recognises its data.

    Raises:
        FormatError: The address has no index, or a damaged one.
        BackendUnavailable: The package that fsspec needs for this address is not installed.

    Example:
        >>> store = FaceStore("out/store", split="train")
        >>> store[0].crop.shape, store.faces[0].identity
        (torch.Size([3, 280, 280]), 'Eileen_Collins')
    """

    def __init__(self, address: str, *, split: Split | None = None) -> None:
        self.address = address.rstrip("/")
        advice = f"make one with `mien data prepare PHOTOS -o {address}`"
        _refuse_pipe(self.address)
        try:
            with fsspec.open(f"{self.address}/{INDEX_FILE}", "rt", encoding="utf-8") as file:
                text = cast(io.TextIOBase, file).read(MAX_INDEX_BYTES)
        except ImportError as error:
            raise BackendUnavailable(f"{address} cannot be opened: {error}") from error
        except (OSError, ValueError) as error:
            raise FormatError(f"{address} is not a store ({error}); {advice}.") from error
        content = parse_json(text, _Index, f"{address} is not a store", advice=advice)
        self.fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if content.format != FORMAT:
            raise FormatError(f"{address} has format {content.format!r}; this version of mien reads {FORMAT!r}.")
        self.faces = [row for row in content.faces if split is None or row.split == split]

    def keep(self, keys: Container[str]) -> None:
        """Leave out all faces but those with the given keys."""
        self.faces = [row for row in self.faces if row.key in keys]

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, number: int) -> FaceRecord:
        """Read one face.

        Raises:
            FormatError: The face is damaged or its shard cannot be read.
        """
        row = self.faces[number]
        address = f"{self.address}/{row.shard}"
        try:
            with fsspec.open(address, "rb") as file:
                stream = cast(io.BufferedReader, file)
                stream.seek(row.offset)
                data = stream.read(row.length)
        except OSError as error:
            raise FormatError(f"{address} of the store cannot be read ({error}); prepare the photos again.") from error
        return decode_record(data, name=f"face {row.key} in {address}")


def _refuse_pipe(address: str) -> None:
    """Refuse a local index that is no regular file: fsspec would wait for the end of a pipe."""
    index = Path(address, INDEX_FILE)
    if index.exists():
        file_size(index, limit=MAX_INDEX_BYTES)
