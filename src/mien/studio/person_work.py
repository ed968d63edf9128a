"""The work on several photos of one person: a first look at one of them, the joint reconstruction, the files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from mien.errors import ImageError, NoFaceFound, PhotoLeftOut
from mien.io.photo import read_photo
from mien.io.result_files import DEFAULT_FORMATS
from mien.memory import typed_out_of_memory
from mien.perception import FaceDetection
from mien.result import PersonReconstruction, Reconstruction
from mien.studio.protocol import Detected, Matched, PersonTask
from mien.studio.work import FINAL_FORMATS, Networks, Outbox, outline, quick_face, write_head, write_preview

PHOTO_FORMATS = (*DEFAULT_FORMATS, "overlay")
"""Files of each photo but the one that shows the person best, which gets all: those of `mien reconstruct`, with the
overlay that `--same-person` adds."""


@typed_out_of_memory
def work_on_person(task: PersonTask, networks: Networks, outbox: Outbox) -> None:
    """Reconstruct a person from several photos, and write the files of each photo.

    Args:
        task: The photos.
        networks: Those of this process.
        outbox: Messages to the server.

    Raises:
        MienError: As `Reconstructor.joint`.
        Stopped: The server has asked to stop.
    """
    reconstructor = networks.reconstructor(task.mode, detail=task.detail)
    detections = dict[int, tuple[FaceDetection, ...]]()

    def detected(index: int, faces: tuple[FaceDetection, ...]) -> None:
        number = task.photos[index]
        detections[index] = faces
        with suppress(ImageError):  # a photo that cannot be read is left out, with its reason, by `joint`
            pixels = read_photo(task.photo_path(number), max_pixels=task.max_pixels).pixels
            write_preview(pixels, task.folder, photo=number)
            height, width = pixels.shape[:2]
            outbox.send(Detected(width, height, tuple(map(outline, faces)), number))

    _first_look(task, networks, outbox)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhotoLeftOut)  # the messages of the photos have the reasons
        found = reconstructor.joint(
            [task.photo_path(number) for number in task.photos],
            focal_px=task.focal_px,
            max_pixels=task.max_pixels,
            progress=outbox.stage,
            detected=detected,
        )
    for index, number in enumerate(task.photos):
        reason = found.reasons[index].replace(f"{task.photo_path(number)}: ", "")
        face = _nearest(found.faces[index], detections.get(index, ()))
        outbox.send(Matched(number, face, found.photo_weights[index], reason, index == found.reference))
    _write(task, found, networks, outbox)


def _nearest(face: Reconstruction | None, detections: Sequence[FaceDetection]) -> int | None:
    """Which of the detected faces a reconstructed one is."""
    if face is None:
        return None
    distances = [np.abs(one.landmarks68_px - face.landmarks68).mean() for one in detections]
    return int(np.argmin(distances))


def _first_look(task: PersonTask, networks: Networks, outbox: Outbox) -> None:
    """Write the network's head of the first photo with a face: something to see while all photos are read."""
    for number in task.photos:
        with suppress(ImageError, NoFaceFound):
            photo = read_photo(task.photo_path(number), max_pixels=task.max_pixels)
            face = quick_face(networks.reconstructor("auto", detail=True), photo, focal_px=task.focal_px)
            outbox.check()
            model = networks.model
            outbox.send(write_head(face, model, task.folder, number=number, step="network", photo=photo, formats=()))
            return


def _write(task: PersonTask, found: PersonReconstruction, networks: Networks, outbox: Outbox) -> None:
    """Write a light head of the best photo, which is there at once, and then the files of all photos, its own first."""
    best, model = task.photos[found.reference], networks.model
    photo = read_photo(task.photo_path(best), max_pixels=task.max_pixels)
    outbox.send(write_head(found.face, model, task.folder, number=best, step="fit", photo=photo, formats=()))
    shown = [index for index, face in enumerate(found.faces) if face is not None]
    for done, index in enumerate(sorted(shown, key=lambda index: index != found.reference)):
        outbox.stage("writing", done / len(shown))
        number, face = task.photos[index], found.faces[index]
        assert face is not None
        photo = read_photo(task.photo_path(number), max_pixels=task.max_pixels)
        formats = FINAL_FORMATS if index == found.reference else PHOTO_FORMATS
        head = write_head(face, model, task.folder, number=number, step="detail", photo=photo, formats=formats)
        outbox.send(head)
