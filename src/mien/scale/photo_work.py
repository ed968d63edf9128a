"""The work on one photo: read it, reconstruct its faces, write their files, and make its row of the table."""
# ruff: noqa: PLC0415 (torch is imported where the work is done, not where it is handed out)

from __future__ import annotations

import functools
import re
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mien.errors import FaceLeftOut
from mien.io.result_files import (
    DEFAULT_FORMATS,
    FACE,
    MeshOptions,
    is_result,
    needs_head,
    parse_formats,
    parse_parts,
)
from mien.scale.output_folder import PhotoFolder
from mien.scale.run_record import Options, result_options
from mien.scale.summary import PhotoRow

if TYPE_CHECKING:
    from mien.fitting import Progress
    from mien.io.photo import Photo
    from mien.morphable import MorphableModel
    from mien.pipeline import Reconstructor
    from mien.result import Reconstruction


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


def write_photo(
    folder: PhotoFolder,
    settings: PhotoSettings,
    reconstructor: Reconstructor,
    *,
    begin: Callable[[], None],
    progress: Progress | None,
) -> PhotoRow:
    """Reconstruct a photo into its folder.

    Args:
        folder: The photo and where its files go.
        settings: How.
        reconstructor: That of the settings.
        begin: Is called before the first file is written.
        progress: Is called with the stages of the photo, see `mien.fitting.Progress`.

    Returns:
        Its row of the table; the reason names faces that were left out.

    Raises:
        MienError: The photo failed.
    """
    from mien.io.photo_arguments import read_argument

    start = time.perf_counter()
    if progress is not None:
        progress("reading", 0.0)
    photo = read_argument(folder.photo, max_pixels=settings.max_pixels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FaceLeftOut)
        faces = reconstructor(
            photo, focal_px=settings.focal_px, principal_point_px=settings.principal_point_px, progress=progress
        )
    left_out = list[str]()
    for found in caught:
        if issubclass(found.category, FaceLeftOut):
            left_out.append(f"{FaceLeftOut.__name__}: {found.message}")
        else:
            warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
    begin()
    for index, face in enumerate(faces):
        if progress is not None:
            progress("writing", index / len(faces))
        settings.write(face, photo, folder.path / f"face{index}", model=reconstructor.model)
    _remove_stale_faces(folder.path, len(faces))
    return PhotoRow(
        photo=str(folder.photo),
        faces=len(faces),
        seconds=time.perf_counter() - start,
        landmark_error=sum(face.landmark_error for face in faces) / len(faces),
        photometric_error=sum(face.photometric_error for face in faces) / len(faces),
        results=str(folder.path),
        reason="; ".join(left_out),
        flags=flag_words(faces),
    )


def flag_words(faces: Sequence[Reconstruction]) -> str:
    """The flags of a photo's faces in short words: "covered, tiny"; of several faces "face1: covered; face4: tiny".

    Args:
        faces: The faces, in the order of their folders.
    """
    words = [", ".join(flag.words for flag in face.quality.flags) if face.quality else "" for face in faces]
    if len(words) == 1:
        return words[0]
    return "; ".join(f"face{number}: {text}" for number, text in enumerate(words) if text)


def _remove_stale_faces(folder: Path, count: int) -> None:
    """Remove the faces of an earlier run that found more; only folders that hold a reconstruction are removed."""
    for old in folder.glob("face*"):
        numbered = re.fullmatch(r"face(\d+)", old.name)
        if numbered and int(numbered[1]) >= count and is_result(old):
            shutil.rmtree(old, ignore_errors=True)
