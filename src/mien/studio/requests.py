"""What all requests of the API share: which job is meant, bodies that become files, and the response."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, HTTPException, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, FiniteFloat

from mien.studio.jobs import Job, Jobs, QueueFull
from mien.studio.protocol import AnyTask, Detected, PersonTask, ShapeTask, Task, VideoTask, preview_name


class Face(BaseModel):
    """A face as far as it is known."""

    face: int
    step: Literal["network", "fit", "detail"] = Field(description="What was done last.")
    files: list[str] = Field(description="Names of the files to download.")
    view: list[list[float]] = Field(description="OpenGL's view matrix, row by row.")
    projection: list[list[float]] = Field(description="OpenGL's projection matrix over the whole photo.")
    landmark_error: float = Field(
        description="Mean landmark error, as a share of the distance of the outer eye corners."
    )
    notes: list[str] = Field(description="What to know about this face.")


class Outline(BaseModel):
    """A detected face, in pixels of the upright photo."""

    box: list[float] = Field(description="Left, top, right, bottom.")
    landmarks: list[list[float]] = Field(description="68 landmarks in iBUG order.")


class Photo(BaseModel):
    """One of the photos of a person."""

    photo: int = Field(description="Its number.")
    width: int | None = Field(description="Width of the upright photo in pixels; null if it has not been read.")
    height: int | None
    outlines: list[Outline]
    face: int | None = Field(description="Which of its outlines is the person.")
    weight: float | None = Field(description="Its influence, 0 to 1; null before the faces were compared.")
    reason: str = Field(description="Why it was left out or counts for little.")
    best: bool = Field(description="Whether it shows the person best: its files are the person's own.")


class Video(BaseModel):
    """What is known of a video before its frames are read."""

    width: int
    height: int
    rate: float = Field(description="Mean number of frames per second.")
    frames: int | None = Field(description="Number of frames, as far as the file tells.")


class TrackedPerson(BaseModel):
    """A person of a video."""

    person: int = Field(description="0 for the person who is seen in most frames.")
    files: list[str] = Field(description="Names of the files to download.")
    frames: int = Field(description="Number of frames with the person.")
    spans_s: list[tuple[float, float]] = Field(description="Stretches without a cut or a long gap, seconds.")
    interpolated_s: list[tuple[float, float]] = Field(description="Stretches in which the face was not found.")


class JobState(BaseModel):
    """What was sent and what is known of its faces."""

    id: str
    kind: Literal["photo", "shape", "person", "video"]
    state: Literal["collecting", "waiting", "running", "stopping", "done", "failed", "cancelled"]
    position: int = Field(description="Number of jobs that come before it.")
    width: int | None = Field(description="Width of the upright photo in pixels.")
    height: int | None
    outlines: list[Outline]
    photos: list[Photo] = Field(description="The photos of a person.")
    faces: list[Face] = Field(description="The faces of a photo; of a person, one for each photo with its number.")
    video: Video | None
    people: list[TrackedPerson] = Field(description="The people of a video.")
    has_overlay: bool = Field(description="Whether overlay.mp4 of a video can be downloaded.")
    warnings: list[str]
    error: str | None = Field(description="Why the job failed.")


Mode = Annotated[Literal["auto", "fit", "net"], Query(description="How the face is found.")]
WithDetail = Annotated[bool, Query(description="Whether displacement and texture offset maps are made.")]
FocalPx = Annotated[FiniteFloat | None, Query(gt=0, description="Focal length in pixels.")]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such job or file, or it has expired."}
}
NO_BODY: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "The body is empty."}}
NO_JSON: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "The body is no JSON text."}}
REFUSED: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The file is too large."},
    503: {"model": Problem, "description": "Too many jobs wait; try again later."},
}
FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_KINDS = {Task: "photo", ShapeTask: "shape", PersonTask: "person", VideoTask: "video"}


def jobs_of(request: Request) -> Jobs:
    """The jobs of the server."""
    return request.app.state.jobs


def job_of(request: Request, job_id: str) -> Job:
    """The job of an address.

    Raises:
        HTTPException: There is none.
    """
    job = jobs_of(request).get(job_id)
    if job is None:
        raise HTTPException(404, "there is no such job, or it has expired; send the photo again.")
    return job


TheJobs = Annotated[Jobs, Depends(jobs_of)]
TheJob = Annotated[Job, Depends(job_of)]


def queue_full() -> HTTPException:
    """The refusal of a job for which there is no place."""
    return HTTPException(503, "too many jobs wait; try again later.", {"Retry-After": "10"})


async def submitted(jobs: Jobs, task: AnyTask) -> JobState:
    """Let a task wait for its turn.

    Raises:
        HTTPException: Too many wait; the task's folder is removed.
    """
    try:
        return state_of(jobs, await jobs.submit(task))
    except QueueFull:
        await asyncio.to_thread(shutil.rmtree, task.folder)
        raise queue_full() from None


async def save_body(request: Request, path: Path, largest: int) -> int:
    """Write the body of a request into a file, up to a size.

    Args:
        request: The request.
        path: The file; it is removed if the request breaks off or is refused.
        largest: Maximum size in bytes.

    Returns:
        The size.

    Raises:
        HTTPException: It is too large, or empty.
    """
    size = 0
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > largest:
                    raise HTTPException(413, f"the file has more than {largest / 1e6:g} MB; use a smaller one.")
                await asyncio.to_thread(file.write, chunk)
        if size == 0:
            raise HTTPException(400, "the request has no body; send the bytes of a file.")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return size


async def save_new(request: Request, jobs: Jobs, name: str, largest: int) -> Path:
    """Write the body of a request into a file in a new folder, see `save_body`."""
    folder = jobs.new_folder()
    try:
        await save_body(request, folder / name, largest)
    except BaseException:
        folder.rmdir()
        raise
    return folder / name


def state_of(jobs: Jobs, job: Job) -> JobState:
    """A job as the API describes it."""
    detected = job.detected.get(0)
    return JobState(
        id=job.id,
        kind=_KINDS[type(job.task)],  # pyright: ignore[reportArgumentType]  (one of them)
        state=job.state,  # pyright: ignore[reportArgumentType]  (one of them)
        position=jobs.position(job),
        width=None if detected is None else detected.width,
        height=None if detected is None else detected.height,
        outlines=_outlines(detected),
        photos=[_photo(job, number) for number in sorted(job.uploads)],
        faces=[Face(**asdict(job.heads[k])) for k in sorted(job.heads)],
        video=None if job.video is None else Video(**asdict(job.video)),
        people=[TrackedPerson(**asdict(job.people[k])) for k in sorted(job.people)],
        has_overlay=job.has_overlay,
        warnings=list(job.warnings),
        error=None if job.failure is None else job.failure.reason,
    )


def preview(job: Job, number: int) -> FileResponse:
    """An upright photo for the page.

    Raises:
        HTTPException: It has not been read.
    """
    if number not in job.detected:
        raise HTTPException(404, "the photo has not been read; wait for the event `detected`.")
    path = job.task.folder / preview_name(number)
    return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


def _photo(job: Job, number: int) -> Photo:
    detected, matched = job.detected.get(number), job.matched.get(number)
    return Photo(
        photo=number,
        width=None if detected is None else detected.width,
        height=None if detected is None else detected.height,
        outlines=_outlines(detected),
        face=None if matched is None else matched.face,
        weight=None if matched is None else matched.weight,
        reason="" if matched is None else matched.reason,
        best=matched is not None and matched.best,
    )


def _outlines(detected: Detected | None) -> list[Outline]:
    return [] if detected is None else [Outline(**asdict(face)) for face in detected.faces]
