"""The work on one photo: read it, reconstruct its faces, write their files, and make its row of the table.

`PhotoSettings` and `PhotoFolder` go to another process, and a `PhotoOutcome` comes back; all three can be pickled. A
`PhotoWorker` stays in its process, since it holds the face model and the networks.
"""
# ruff: noqa: PLC0415 (torch is imported where the work is done, not where it is handed out)

from __future__ import annotations

import functools
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mien.errors import FaceDoubtful, FaceLeftOut, MienError
from mien.io.result_files import (
    DEFAULT_FORMATS,
    FACE,
    MeshOptions,
    is_result,
    needs_head,
    parse_formats,
    parse_parts,
)
from mien.memory import typed_out_of_memory
from mien.scale.output_folder import PhotoFolder
from mien.scale.run_record import Options, file_sha256, result_options
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.fitting import Progress
    from mien.io.photo import Photo
    from mien.morphable import MorphableModel
    from mien.pipeline import Reconstructor
    from mien.result import Reconstruction
    from mien.scale.addresses import AddressFolder


@dataclass(frozen=True)
class PhotoSettings:
    """How photos are reconstructed and written."""

    model: str = "mien-face"
    """As in `Reconstructor`, like the ten fields below."""
    device: str = "cpu"
    """As in `Reconstructor`."""
    detail: bool = True
    """As in `Reconstructor`."""
    resolution: int = 224
    """As in `Reconstructor`."""
    texture_size: int | None = None
    """As in `Reconstructor`."""
    seed: int = 0
    """As in `Reconstructor`."""
    max_faces: int | None = None
    """As in `Reconstructor`."""
    refine_focal: bool = False
    """As in `Reconstructor`."""
    mode: str | None = None
    """As in `Reconstructor`."""
    encoder: str | None = None
    """File of the encoder; None for the packaged one."""
    detail_mode: str | None = None
    """As in `Reconstructor`."""
    detail_network: str | None = None
    """File of the detail network; None for the packaged one."""
    focal_px: float | None = None
    """Focal length of all photos in pixels; None for that of EXIF."""
    principal_point_px: tuple[float, float] | None = None
    """Position (x, y) of the optical axis in pixels; None for the middle of each photo."""
    max_pixels: int = 64_000_000
    """Larger JPEGs are reduced."""
    formats: str | tuple[str, ...] = DEFAULT_FORMATS
    """Files per face, as in `write_reconstruction`."""
    parts: str | tuple[str, ...] = FACE
    """As in `write_reconstruction`, like the four below."""
    neutral: bool = False
    """As in `write_reconstruction`."""
    units: str = "m"
    """As in `write_reconstruction`."""
    embed_camera: bool = False
    """As in `write_reconstruction`."""
    glb: str = "sparse"
    """`morphs` of `write_reconstruction`."""
    scalp: str = "hair"
    """As in `write_reconstruction`."""

    @functools.cached_property
    def options(self) -> Options:
        """The settings for run.json; a file is represented by its SHA-256."""
        return result_options(vars(self))

    @property
    def mesh_options(self) -> MeshOptions:
        """How meshes are written.

        Raises:
            ConfigError: A value is unknown.
        """
        return MeshOptions.parsed(
            self.parts,
            neutral=self.neutral,
            units=self.units,
            embed_camera=self.embed_camera,
            morphs=self.glb,
            scalp=self.scalp,
        )

    def write(self, face: Reconstruction, photo: Photo, folder: Path, *, model: MorphableModel) -> None:
        """Write the files of one face.

        Args:
            face: The face.
            photo: The photo that shows it.
            folder: Where the files go.
            model: The model of the face.

        Raises:
            MienError: As `write_reconstruction`.
        """
        from mien.export import write_files

        write_files(face, model, photo, folder, formats=parse_formats(self.formats), options=self.mesh_options)

    def check_head(self, model: MorphableModel) -> None:
        """Check before the first photo that the model has the head that the files show.

        Args:
            model: The model of the faces.

        Raises:
            ModelMismatch: A head is asked for, and the model has none.
        """
        if needs_head(parse_formats(self.formats), parse_parts(self.parts)):
            from mien.morphable import load_head

            load_head(model)

    def reconstructor(self) -> Reconstructor:
        """Load the model and the networks.

        Raises:
            MienError: As `Reconstructor`.
        """
        from mien.networks import DEFAULT_DETAIL, DEFAULT_ENCODER
        from mien.pipeline import Reconstructor

        return Reconstructor(
            model=self.model,
            device=self.device,
            detail=self.detail,
            resolution=self.resolution,
            texture_size=self.texture_size,
            seed=self.seed,
            max_faces=self.max_faces,
            refine_focal=self.refine_focal,
            mode=self.mode,
            encoder=self.encoder or DEFAULT_ENCODER,
            detail_mode=self.detail_mode,
            detail_network=self.detail_network or DEFAULT_DETAIL,
        )


@dataclass(frozen=True)
class PhotoOutcome:
    """What became of a photo."""

    row: PhotoRow
    """Its row of the table; the reason says what failed."""
    warnings: tuple[tuple[Warning, str, int], ...] = ()
    """Warnings for the user: the warning, the file and the line that gave it."""
    earlier: bool = False
    """Whether an earlier run made the results, and this one skipped the photo."""
    changed: str = ""
    """The options with which an earlier run made results that were replaced, see `changed_options`."""

    def show_warnings(self) -> None:
        """Give the warnings again in this process, whose filters decide."""
        for message, filename, line in self.warnings:
            warnings.warn_explicit(message, type(message), filename, line)


class PhotoWorker:
    """Reconstructs photos one by one.

    Args:
        settings: How.
        reconstructor: That of the settings, if it is loaded already.
        progress: Is called with the stages of each photo, see `mien.fitting.Progress`.

    Raises:
        MienError: As `PhotoSettings.reconstructor`, or a head is asked for, and the face model has none.
    """

    def __init__(
        self, settings: PhotoSettings, *, reconstructor: Reconstructor | None = None, progress: Progress | None = None
    ) -> None:
        self.settings, self._progress = settings, progress
        self._reconstructor = reconstructor or settings.reconstructor()
        settings.check_head(self._reconstructor.model)

    def __call__(self, folder: PhotoFolder) -> PhotoOutcome:
        """Reconstruct a photo into its folder; if it fails, the row says why.

        Args:
            folder: The photo and where its files go.
        """
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FaceLeftOut)
            warnings.simplefilter("ignore", FaceDoubtful)  # the row has the flags
            row = self._row(folder, start, caught)
        others = [warning for warning in caught if not issubclass(warning.category, FaceLeftOut)]
        return PhotoOutcome(row, tuple((_warning(found), found.filename, found.lineno) for found in others))

    def _row(self, folder: PhotoFolder, start: float, caught: list[warnings.WarningMessage]) -> PhotoRow:
        try:
            content = file_sha256(folder.photo)
            faces = self._write_faces(folder, content)
            left_out = [str(found.message) for found in caught if issubclass(found.category, FaceLeftOut)]
            row = PhotoRow(
                photo=str(folder.photo),
                faces=len(faces),
                seconds=time.perf_counter() - start,
                landmark_error=sum(face.landmark_error for face in faces) / len(faces),
                photometric_error=sum(face.photometric_error for face in faces) / len(faces),
                results=str(folder.path),
                reason="; ".join(f"{FaceLeftOut.__name__}: {message}" for message in left_out),
                flags=flag_words(faces),
            )
            if not row.reason:
                folder.finish(row, content, self.settings.options)
        except MienError as error:
            folder.forget()
            return failed_row(folder, error, seconds=time.perf_counter() - start)
        return row

    @typed_out_of_memory
    def _write_faces(self, folder: PhotoFolder, content: str) -> list[Reconstruction]:
        from mien.io.photo_arguments import read_argument

        settings = self.settings
        self._stage("reading", 0.0)
        photo = read_argument(folder.photo, max_pixels=settings.max_pixels)
        faces = self._reconstructor(
            photo,
            focal_px=settings.focal_px,
            principal_point_px=settings.principal_point_px,
            progress=self._progress,
        )
        folder.begin(content, settings.options)
        for index, face in enumerate(faces):
            self._stage("writing", index / len(faces))
            settings.write(face, photo, folder.path / f"face{index}", model=self._reconstructor.model)
        _remove_stale_faces(folder.path, len(faces))
        return faces

    def _stage(self, name: str, share: float) -> None:
        if self._progress is not None:
            self._progress(name, share)


def flag_words(faces: Sequence[Reconstruction]) -> str:
    """The flags of a photo's faces in short words: "covered, tiny"; of several faces "face1: covered; face4: tiny".

    Args:
        faces: The faces, in the order of their folders.
    """
    words = [", ".join(flag.words for flag in face.quality.flags) if face.quality else "" for face in faces]
    if len(words) == 1:
        return words[0]
    return "; ".join(f"face{number}: {text}" for number, text in enumerate(words) if text)


def failed_row(folder: PhotoFolder | AddressFolder, error: MienError, *, seconds: float) -> PhotoRow:
    """The row of a photo that failed.

    Args:
        folder: The photo.
        error: Why.
        seconds: The time it took.
    """
    reason = str(error).removeprefix(f"{folder.photo}: ")  # the row already names the photo
    return PhotoRow(str(folder.photo), 0, seconds, None, None, "", f"{type(error).__name__}: {reason}")


def _warning(found: warnings.WarningMessage) -> Warning:
    return found.message if isinstance(found.message, Warning) else found.category(found.message)


def _remove_stale_faces(folder: Path, count: int) -> None:
    """Remove the faces of an earlier run that found more; only folders that hold a reconstruction are removed."""
    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and is_result(old):
            shutil.rmtree(old, ignore_errors=True)
