"""The command `mien track`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the command), PLR0917 (options are named by typer)

from __future__ import annotations

import enum
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mien.cli.options import DeviceOption, FocalOption, JsonOption, QuietOption, wrong_usage
from mien.cli.terminal import plain_table, print_json, printable, sigterm_exits, stderr, stdout
from mien.io.photo_files import SUFFIXES

if TYPE_CHECKING:
    from mien.tracking import Track
    from mien.tracking.tracker import TrackProgress

WORK_FOLDER = ".mien-track"
"""Folder in OUT of what a run has found so far; it is removed when the run is done."""


class TrackMode(str, enum.Enum):
    """The choices of --mode."""

    NET, FIT = "net", "fit"


def track(
    video: Annotated[str, typer.Argument(help="Video file, folder of pictures, or number of a webcam.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("out"),
    mode: Annotated[
        TrackMode,
        typer.Option(
            metavar="[net|fit]",
            help="net: expressions from points and the encoder, which is more exact. fit: from points alone.",
        ),
    ] = TrackMode.NET,
    formats: Annotated[
        str, typer.Option(help="What to write, with commas: glb, csv, npz, sheet, overlay.")
    ] = "glb,csv,npz,sheet,overlay",
    live: Annotated[
        bool,
        typer.Option("--live", help="Use past frames alone, as for a webcam; the motion is less smooth."),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End after so many seconds; with --live. Default: at Ctrl-C.")
    ] = None,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Maximum number of faces followed at a time.")] = None,
    focal_px: FocalOption = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Pictures per second of a folder. Default: 25.", show_default=False)
    ] = None,
    device: DeviceOption = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Track the faces of a video: OUT/person0/head.glb with animation, blendshapes.csv and more, OUT/overlay.mp4.

    Each person has one identity; pose, expression and gaze are smooth curves without lag. With --live, frames are
    processed as they come.
    """
    from mien.io.folder_lock import locked_folder
    from mien.tracking.outputs import parse_track_formats

    with wrong_usage("--formats"):
        chosen = parse_track_formats(formats)
    if Path(video).suffix.lower() in SUFFIXES:
        raise typer.BadParameter(f"{video} is a photo; use `mien reconstruct {video}`", param_hint="'VIDEO'")
    if seconds is not None and not live:
        raise typer.BadParameter("needs --live", param_hint="'--seconds'")
    if video.isdecimal() and not Path(video).exists() and not live:
        raise typer.BadParameter(f"{video} is a webcam, which needs --live", param_hint="'VIDEO'")
    settings = {"mode": mode.value, "device": device, "max_faces": max_faces, "focal_px": focal_px}
    run = _Run(video, out, chosen, rate, settings)
    begun = time.perf_counter()
    with sigterm_exits(), locked_folder(out, advice="choose another place with -o"), _bar(shown=not quiet) as report:
        tracks = _live(run, seconds, report) if live else _offline(run, report, resume=resume)
    _show(tracks, out, time.perf_counter() - begun, as_json=as_json)


@dataclass(frozen=True)
class _Run:
    """What to do."""

    video: str
    out: Path
    formats: tuple[str, ...]
    rate: float | None
    tracker: dict[str, Any]
    """Arguments of `Tracker` and `LiveTracker`."""


def _offline(run: _Run, report: TrackProgress, *, resume: bool) -> list[Track]:
    from mien.io.files import writing
    from mien.tracking import Tracker
    from mien.tracking.outputs import remove_other_files, write_person, write_pictures

    work = run.out / WORK_FOLDER
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    tracker = Tracker(**run.tracker)
    tracks = []
    for person in tracker(run.video, work, rate=run.rate, progress=report):
        write_person(person, tracker.model, run.out, run.formats)
        tracks.append(person)
    write_pictures(run.video, tracks, tracker.model, run.out, run.formats, rate=run.rate, progress=report)
    remove_other_files(run.out, len(tracks), run.formats)
    with writing(work):
        shutil.rmtree(work)
    return tracks


def _live(run: _Run, seconds: float | None, report: TrackProgress) -> list[Track]:
    from mien.tracking.live import LiveTracker, record
    from mien.tracking.outputs import remove_other_files, write_person

    tracker = LiveTracker(**run.tracker)
    overlay = "overlay" in run.formats
    tracks = record(tracker, run.video, run.out, overlay=overlay, rate=run.rate, seconds=seconds, progress=report)
    for person in tracks:
        write_person(person, tracker.model, run.out, run.formats)
    written = [name for name in run.formats if name != "sheet"]  # it needs the video once more
    remove_other_files(run.out, len(tracks), written)
    return tracks


@contextmanager
def _bar(*, shown: bool) -> Iterator[TrackProgress]:
    """A bar with the stage, the frames per second and the time left, if stderr is a terminal."""
    console = stderr()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed} of {task.fields[count]} frames"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
        speed_estimate_period=60,
    )
    task = bar.add_task("loading the model", total=None, count="?", rate="")
    stage, first, begun = "", 0, 0.0

    def report(name: str, done: int, total: int | None) -> None:
        nonlocal stage, first, begun
        if name != stage:
            stage, first, begun = name, done, time.perf_counter()
            bar.reset(task, description=printable(name), total=total)
        elapsed = time.perf_counter() - begun
        speed = f"{(done - first) / elapsed:.1f} per second" if elapsed > 0.5 else ""
        bar.update(task, completed=done, total=total, count="?" if total is None else total, rate=speed)

    with bar:
        yield report


def _show(tracks: list[Track], out: Path, seconds: float, *, as_json: bool) -> None:
    from mien.tracking.outputs import person_folder

    rows = [
        {
            "person": person.number,
            "frames": len(person.frames),
            "from_s": round(float(person.times_s[0]), 3),
            "to_s": round(float(person.times_s[-1]), 3),
            "found": round(float(person.detected.mean()), 4),
            "results": str(person_folder(out, person)),
        }
        for person in tracks
    ]
    if as_json:
        print_json({"people": rows, "seconds": round(seconds, 3), "results": str(out)})
        return
    table = plain_table()
    for row in rows:
        frames = "1 frame" if row["frames"] == 1 else f"{row['frames']} frames"
        times = f"{row['from_s']:.2f} to {row['to_s']:.2f} s"
        table.add_row(f"person {row['person']}", f"{frames}, {times}", printable(str(row["results"])))
    stdout().print(table)
