"""Packed face crops on disk or in object storage: tar shards that WebDataset can stream, with an index for any order.

    STORE/index.json          format, settings, and for every face: shard, byte range, identity, age, split, flags
    STORE/faces-000012.tar    KEY.jpg (crop with margin), KEY.mask.png (skin), KEY.points.npy (68, then 468 points),
                              KEY.json (camera, names)

A face's members lie side by side, so one ranged read fetches it. Random access makes the order of training a pure
function of seed and step, which WebDataset's streaming cannot give; the shards remain readable by it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

import fsspec
import numpy as np
import torch
from PIL import Image

from mien.errors import BackendUnavailable, FormatError
from mien.io.pixels import to_uint8
from mien.typing import Float, Tensor

FORMAT = "mien-store-1"
INDEX_FILE = "index.json"
STORE_SIZE = 280
"""Side of the stored crops, pixels."""
STORE_MARGIN = 1.25
"""Their side in sides of a face crop: room to move and turn, and 224 pixels for the face crop itself."""
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class StoredFace:
    """One row of the index."""

    key: str
    shard: str
    offset: int
    length: int
    """The byte range of its members in the shard."""
    photo: str
    """Path of the photo below the folder that was prepared."""
    identity: str
    age: int | None
    split: Split
    flags: tuple[str, ...]


@dataclass(frozen=True)
class FaceRecord:
    """What the store holds of one face; points and camera in pixels of the crop."""

    crop: Float[Tensor, "3 S S"]
    mask: Float[Tensor, "S S"]
    landmarks68_px: Float[Tensor, "68 2"]
    landmarks468_px: Float[Tensor, "468 2"]
    focal_px: float
    centre_px: tuple[float, float]
    exposure: float
    """How bright the photo is as a whole, see `FitTargets`."""


def encode_record(key: str, record: FaceRecord, *, notes: dict[str, object]) -> bytes:
    """The tar members of one face, without the archive's end; `notes` join its JSON."""
    points = torch.cat([record.landmarks68_px, record.landmarks468_px]).numpy().astype(np.float32)
    camera = {"focal_px": record.focal_px, "centre_px": list(record.centre_px), "exposure": record.exposure}
    members = {
        f"{key}.jpg": _picture_bytes(record.crop.permute(1, 2, 0), "JPEG", quality=92),
        f"{key}.mask.png": _picture_bytes(record.mask, "PNG"),
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


def decode_record(data: bytes) -> FaceRecord:
    """The face that `encode_record` wrote; FormatError for anything else."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            parts = {
                member.name.split(".", 1)[1]: cast(io.BufferedReader, archive.extractfile(member)).read()
                for member in archive
            }
        points = torch.from_numpy(np.load(io.BytesIO(parts["points.npy"]), allow_pickle=False))
        camera = json.loads(parts["json"])
        return FaceRecord(
            crop=_pixels(parts["jpg"]).permute(2, 0, 1),
            mask=_pixels(parts["mask.png"]),
            landmarks68_px=points[:68],
            landmarks468_px=points[68:],
            focal_px=float(camera["focal_px"]),
            centre_px=(float(camera["centre_px"][0]), float(camera["centre_px"][1])),
            exposure=float(camera["exposure"]),
        )
    except (tarfile.TarError, KeyError, ValueError, OSError, IndexError, TypeError) as error:
        raise FormatError(f"a record of the store is damaged ({error}); prepare the photos again.") from error


def _picture_bytes(picture: Float[Tensor, "H W *C"], kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(stream, kind, **options)
    return stream.getvalue()


def _array_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _pixels(data: bytes) -> Float[Tensor, "H W *C"]:
    with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
        return torch.from_numpy(np.array(image)).float() / 255


def write_index(path: str, faces: Sequence[StoredFace], *, settings: dict[str, object]) -> None:
    """Write a store's index."""
    rows = [asdict(face) for face in faces]
    with fsspec.open(path, "wt", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "settings": settings, "faces": rows}, cast(io.TextIOBase, file))


class FaceStore:
    """The faces of one split of a store, at a path or any address that fsspec understands (s3://, gs://, https://).

    `fingerprint` is a hash of what the index says. FormatError for a place without an index, or with a damaged one;
    BackendUnavailable where fsspec lacks the package of such an address.
    """

    def __init__(self, address: str, *, split: Split | None = None) -> None:
        self.address = address.rstrip("/")
        try:
            with fsspec.open(f"{self.address}/{INDEX_FILE}", "rt", encoding="utf-8") as file:
                text = cast(io.TextIOBase, file).read()
            content = json.loads(text)
            self.fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            if content["format"] != FORMAT:
                raise FormatError(f"{address} says format {content['format']!r}; this version reads {FORMAT!r}.")
            rows = [StoredFace(**{**row, "flags": tuple(row["flags"])}) for row in content["faces"]]
        except ImportError as error:
            raise BackendUnavailable(f"{address} cannot be opened: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{address} is not a store ({error}); make one with `mien data prepare PHOTOS -o {address}`."
            ) from error
        self.faces = [row for row in rows if split is None or row.split == split]

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, number: int) -> FaceRecord:
        """Read one face; FormatError where it is damaged or missing."""
        row = self.faces[number]
        address = f"{self.address}/{row.shard}"
        try:
            with fsspec.open(address, "rb") as file:
                stream = cast(io.BufferedReader, file)
                stream.seek(row.offset)
                data = stream.read(row.length)
        except OSError as error:
            raise FormatError(f"{address} of the store cannot be read ({error}); prepare the photos again.") from error
        return decode_record(data)
