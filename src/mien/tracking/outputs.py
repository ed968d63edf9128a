"""The files of tracked people: a folder per person, and the overlay video of all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mien.errors import ConfigError, ModelMismatch
from mien.export import glb_bytes, head_glb_bytes
from mien.export.animation import FaceAnimation
from mien.io.files import write_text, write_whole, writing
from mien.io.png import write_png
from mien.io.video import VideoFrame, VideoInfo, VideoWriter, open_video
from mien.morphable import MorphableModel, load_head
from mien.tracking.live_link import live_link_csv
from mien.tracking.pictures import TrackPainter, key_rows, key_sheet, overlay_scale, resized
from mien.tracking.track import TRACK_FILE, Track
from mien.tracking.tracker import TrackProgress

FORMATS = ("glb", "csv", "npz", "sheet", "overlay")
"""What can be written."""
HEAD_FILE, FACE_FILE, CSV_FILE, SHEET_FILE = "head.glb", "face.glb", "blendshapes.csv", "sheet.png"
OVERLAY_FILE = "overlay.mp4"
_PERSON_FILES = {"glb": (HEAD_FILE, FACE_FILE), "csv": (CSV_FILE,), "npz": (TRACK_FILE,), "sheet": (SHEET_FILE,)}
"""Names of the files of each format in the folder of a person."""


def parse_track_formats(formats: str | Iterable[str]) -> tuple[str, ...]:
    """Check the names of formats.

    Args:
        formats: Names, or one text with commas: "glb,csv".

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    names = [name.strip() for name in (formats.split(",") if isinstance(formats, str) else formats)]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        given = f"formats contains {unknown[0]!r}" if unknown else "formats is empty"
        raise ConfigError(f"{given}; choose from {', '.join(FORMATS)}.")
    return tuple(name for name in FORMATS if name in names)


def person_folder(out: Path, track: Track) -> Path:
    """The folder of one person's files."""
    return out / f"person{track.number}"


def animation_of(track: Track) -> FaceAnimation:
    """The motion of a track for a GLB file."""
    return FaceAnimation(
        times_s=track.times_s,
        segments=track.segments,
        rotation=track.rotation,
        translation=track.translation,
        weights=track.expression,
        names=track.expression_names,
        focal_px=track.focal_px,
        image_size=track.image_size,
    )


def animated_glb(track: Track, model: MorphableModel) -> tuple[str, bytes]:
    """The person as an animated GLB file: the whole head if the model has one, else the face.

    Args:
        track: The person, with portrait.
        model: The face model.

    Returns:
        Name and content of the file.
    """
    assert track.portrait is not None
    try:
        load_head(model)
    except ModelMismatch:
        return FACE_FILE, glb_bytes(track.portrait, model, animation=animation_of(track))
    return HEAD_FILE, head_glb_bytes(track.portrait, model, animation=animation_of(track))


def write_person(track: Track, model: MorphableModel, out: Path, formats: Sequence[str]) -> None:
    """Write the files of one person that need no frames.

    Args:
        track: The person.
        model: The face model.
        out: The folder of all people.
        formats: Some of `FORMATS`.

    Raises:
        OutputError: A file cannot be written.
    """
    folder = person_folder(out, track)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if "npz" in formats:
            track.save(folder)
        if "csv" in formats:
            write_text(folder / CSV_FILE, live_link_csv(track))
        if "glb" in formats:
            name, content = animated_glb(track, model)
            write_whole(folder / name, lambda partial: partial.write_bytes(content))


class OverlayVideo:
    """The frames of a video with people over them."""

    def __init__(self, writer: VideoWriter, scale: float) -> None:
        self._writer, self._scale = writer, scale

    def add(self, frame: VideoFrame, painters: Iterable[TrackPainter]) -> None:
        """Add the next frame.

        Args:
            frame: The frame.
            painters: Draw the people who are in it.
        """
        picture = resized(frame.pixels, self._scale)
        for painter in painters:
            picture = painter.draw(picture, frame.index, scale=self._scale)
        self._writer.add(picture, frame.time_s)


@contextmanager
def overlay_video(out: Path, info: VideoInfo) -> Iterator[OverlayVideo]:
    """Write `overlay.mp4`, which appears in the folder at the end of the block.

    Args:
        out: The folder.
        info: The video.

    Raises:
        OutputError: The file cannot be written.
    """
    partial, scale = out / f".{OVERLAY_FILE}", overlay_scale(info.size)
    width, height = (max(round(side * scale), 2) for side in info.size)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            with VideoWriter(partial, size=(width, height), rate=info.rate) as writer:
                yield OverlayVideo(writer, scale)
            partial.replace(out / OVERLAY_FILE)
        finally:
            partial.unlink(missing_ok=True)


def write_pictures(
    source: str | os.PathLike[str] | int,
    tracks: Sequence[Track],
    model: MorphableModel,
    out: Path,
    formats: Sequence[str],
    *,
    rate: float | None = None,
    progress: TrackProgress | None = None,
) -> None:
    """Read the video again and draw the people: the overlay video and a sheet per person.

    Args:
        source: The video.
        tracks: Its people.
        model: The face model.
        out: The folder of all people.
        formats: Some of `FORMATS`; others than sheet and overlay have no effect.
        rate: Pictures per second of a folder.
        progress: Is called with the number of drawn frames.

    Raises:
        VideoError: The video cannot be read any more.
        OutputError: A file cannot be written.
    """
    if not {"sheet", "overlay"} & set(formats):
        return
    painters = [TrackPainter(track, model) for track in tracks]
    keys = [key_rows(track) if "sheet" in formats else [] for track in tracks]
    panels: list[list[list]] = [[] for _ in tracks]
    wanted = {int(track.frames[row]) for track, rows in zip(tracks, keys, strict=True) for row in rows}
    with ExitStack() as stack:
        video = stack.enter_context(open_video(source, rate=rate))
        overlay = stack.enter_context(overlay_video(out, video.info)) if "overlay" in formats else None
        for frame in video.frames() if overlay else video.picked(wanted):
            for painter, rows, column in zip(painters, keys, panels, strict=True):
                row = painter.row_of.get(frame.index)
                if row in rows:
                    column.append(painter.panels(frame.pixels, row))
            if overlay is not None:
                overlay.add(frame, painters)
            if progress is not None:
                progress("drawing", frame.index + 1, video.info.frames)
    for track, rows, column in zip(tracks, keys, panels, strict=True):
        if column:
            sheet = key_sheet(column, [float(track.times_s[row]) for row in rows])
            place = person_folder(out, track)
            with writing(place):
                place.mkdir(parents=True, exist_ok=True)
                write_whole(place / SHEET_FILE, lambda partial, sheet=sheet: write_png(sheet, partial))


def remove_other_files(out: Path, people: int, formats: Sequence[str]) -> None:
    """Remove what an earlier run has left: files of further people, and of formats that this run did not write.

    Args:
        out: The folder of all people.
        people: Number of people of this run.
        formats: Those of `FORMATS` that it wrote.

    Raises:
        OutputError: A file cannot be removed.
    """
    with writing(out):
        for folder in out.glob("person*"):
            number = re.fullmatch(r"person(\d+)", folder.name)
            if number is None:
                continue
            kept = formats if int(number[1]) < people else ()
            for name in (name for kind, names in _PERSON_FILES.items() if kind not in kept for name in names):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # other files are in it
                folder.rmdir()
        if "overlay" not in formats:
            (out / OVERLAY_FILE).unlink(missing_ok=True)
