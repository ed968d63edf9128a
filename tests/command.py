"""The command `mien` in tests, with a reconstructor that takes no time."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mien.cli import app as cli
from mien.errors import FaceLeftOut, FitDiverged, NoFaceFound, PhotoLeftOut
from mien.fitting import Progress
from mien.io.files import writing_folder
from mien.io.photo import Photo, read_photo
from mien.io.result_folder import write_result_files
from mien.pipeline.joint import PersonFaces
from mien.result import Reconstruction
from tests.tiny_face import tiny_model, tiny_photo, tiny_reconstruction


class FakeReconstructor:
    """Returns as many faces as the brightness of the top-left pixel; loads no weights."""

    made: list[dict[str, Any]] = []  # noqa: RUF012 (shared on purpose: the commands make their own instance)
    photos: list[str] = []  # noqa: RUF012 (names of the photos that were reconstructed)
    paths: list[Path] = []  # noqa: RUF012 (paths of the photos of people)

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)
        self.model = tiny_model()

    def __call__(
        self,
        photo: Photo,
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        progress: Progress | None = None,
    ) -> list[Reconstruction]:
        if progress is not None:
            progress("photometric", 0.4)
        self.made[-1] |= {"focal_px": focal_px, "principal_point_px": principal_point_px}
        self.photos.append(photo.path.name)
        count = int(photo.pixels[0, 0, 0])
        if count == 0:
            raise NoFaceFound("no face was found")
        if count == 6:
            torch.empty(10**15)  # more than any address space
        if count == 7:
            raise KeyboardInterrupt
        if count == 9:
            raise FitDiverged("a number is not finite")
        if count == 8:
            warnings.warn("something else", UserWarning, stacklevel=2)
            warnings.warn(FaceLeftOut("face 2 of 2 was left out: lost"), stacklevel=2)
            count = 1
        height, width = photo.pixels.shape[:2]
        return [replace(tiny_reconstruction(), image_size=(width, height))] * count

    def joint_one_by_one(
        self,
        photos: Sequence[Photo | Path],
        *,
        focal_px: float | None = None,
        principal_point_px: tuple[float, float] | None = None,
        max_pixels: int,
        progress: Progress | None = None,
    ) -> PersonFaces:
        """One face per photo; a photo whose pixel is 0 does not show the person, 7 is Ctrl-C, and 9 fails."""
        self.made[-1] |= {"focal_px": focal_px, "principal_point_px": principal_point_px, "max_pixels": max_pixels}
        opened = [photo if isinstance(photo, Photo) else read_photo(photo) for photo in photos]
        self.photos += [photo.path.name for photo in opened]
        self.paths.extend(photo.path for photo in opened)
        counts = [int(photo.pixels[0, 0, 0]) for photo in opened]
        if 7 in counts:
            raise KeyboardInterrupt
        if 9 in counts:
            raise FitDiverged("a number is not finite")
        if not any(counts):
            raise NoFaceFound("no face was found in any photo")
        face = replace(tiny_reconstruction(), image_size=opened[0].pixels.shape[1::-1])
        reasons = tuple(
            "" if count else f"{photo}: not the person" for photo, count in zip(photos, counts, strict=True)
        )
        for reason in filter(None, reasons):
            warnings.warn(reason, PhotoLeftOut, stacklevel=2)
        faces = [(number, face) for number, count in enumerate(counts) if count]
        return PersonFaces(iter(faces), tuple(float(count > 0) for count in counts), reasons, faces[0][0])


def photo_with(path: Path, faces: int) -> Path:
    pixels = tiny_photo().pixels.copy()
    pixels[0, 0] = faces
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_numbers(face: Reconstruction, _model: object, _photo: object, folder: Path, **_: object) -> None:
    """Stands for `write_files`, without meshes and pictures."""
    with writing_folder(folder) as partial:
        write_result_files(face, partial)


def done_until_killed(command: list[str], *, after: int) -> list[str]:
    """The photos that a run with --json has done when it is killed, which is after some photos that it did not skip."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    done, fresh = list[str](), 0
    for line in process.stdout:
        row = json.loads(line)
        fresh += row["status"] != "skipped"
        done += [row["photo"]] if row["status"] == "done" else []
        if fresh == after:
            break
    process.send_signal(signal.SIGKILL)
    rest = [json.loads(line) for line in process.stdout.read().splitlines() if line.endswith("}")]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    return done + [row["photo"] for row in rest if row["status"] == "done"]


def main() -> None:
    """`python -m tests.command reconstruct …`: the command with fakes that take no time, for tests that kill it."""
    import mien.cli.reconstruct
    import mien.export
    import mien.pipeline

    mien.pipeline.Reconstructor = FakeReconstructor  # pyright: ignore[reportAttributeAccessIssue]
    mien.export.write_files = write_numbers  # pyright: ignore[reportAttributeAccessIssue]
    mien.cli.reconstruct.core_count = lambda: 1  # other processes have no fakes
    cli.main()


if __name__ == "__main__":
    main()
