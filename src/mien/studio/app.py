"""The HTTP API: photo → job → events → files. The page uses it, and so can other programs.

`people` adds the requests for several photos of one person, and `videos` those for videos.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, WithJsonSchema

from mien import __version__
from mien.errors import ConfigError
from mien.io.result_files import ARRAYS_FILE, COEFFICIENTS_FILE, FORMATS, RESULT_FILES, parse_formats
from mien.studio import people, videos
from mien.studio.jobs import Job, Jobs
from mien.studio.protocol import SOURCE_NAME, STEP_FILES, HeadReady, Message, Progress, ShapeTask, Task
from mien.studio.requests import (
    FILE_BODY,
    NO_BODY,
    NO_JSON,
    NOT_FOUND,
    REFUSED,
    FocalPx,
    JobState,
    Mode,
    Problem,
    TheJob,
    TheJobs,
    WithDetail,
    preview,
    save_new,
    state_of,
    submitted,
)

PHOTO_NAME = "photo"
"""Name of an uploaded file in its job's folder, whatever its name was."""
_PING_S = 10.0
"""How often a stream without news says that it is alive."""
_DOWNLOADS = RESULT_FILES | frozenset(STEP_FILES.values())
_CONTENT_TYPES = {".glb": "model/gltf-binary", ".obj": "model/obj", ".ply": "model/ply", ".npz": "application/zip"}


class PlacedLandmark(BaseModel):
    """A landmark that the user has placed."""

    landmark: int = Field(ge=17, le=67, description="Number in iBUG order.")
    x: FiniteFloat = Field(description="Pixels from the left of the upright photo.")
    y: FiniteFloat = Field(description="Pixels from its top.")


def _known_formats(text: str) -> str:
    try:
        parse_formats(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


_FORMAT = f"({'|'.join(FORMATS)})"
Formats = Annotated[
    str,
    AfterValidator(_known_formats),
    WithJsonSchema({"type": "string", "pattern": f"^{_FORMAT}(,{_FORMAT})*$"}),
]
"""Names of formats with commas."""
Strength = Annotated[FiniteFloat, Field(ge=-1, le=1)]
"""Strength of a slider of the shape."""


_api = APIRouter()


def _head_of(job: Job, face: int) -> HeadReady:
    if face not in job.heads:
        raise HTTPException(404, "there is no such face; the job's state lists them.")
    return job.heads[face]


@_api.post(
    "/api/jobs",
    status_code=202,
    responses={**NO_BODY, **REFUSED},
    openapi_extra=FILE_BODY,
)
async def submit(
    request: Request,
    jobs: TheJobs,
    *,
    mode: Mode = "auto",
    detail: WithDetail = True,
    focal_px: FocalPx = None,
    formats: Annotated[
        Formats | None,
        Query(description=f"What to write, with commas: {', '.join(FORMATS)}. Default: all for downloads."),
    ] = None,
) -> JobState:
    """Send a photo, as the body of the request: JPEG, PNG, HEIC, AVIF, WebP, TIFF."""
    chosen = None if formats is None else parse_formats(formats)
    limits = jobs.limits
    path = await save_new(request, jobs, PHOTO_NAME, limits.upload_bytes)
    return await submitted(jobs, Task(path, path.parent, mode, detail, focal_px, (), limits.max_pixels, chosen))


@_api.get("/api/jobs/{job_id}", responses=NOT_FOUND)
async def state(jobs: TheJobs, job: TheJob) -> JobState:
    """What is known of a job."""
    return state_of(jobs, job)


@_api.delete("/api/jobs/{job_id}", status_code=204, responses=NOT_FOUND)
async def remove(jobs: TheJobs, job: TheJob) -> None:
    """Stop the work on a job, and remove what was sent and its results."""
    jobs.remove(job)


@_api.get(
    "/api/jobs/{job_id}/events",
    responses={**NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
    response_class=StreamingResponse,
)
async def events(job: TheJob, request: Request) -> StreamingResponse:
    """What happens, as server-sent events: stage, detected, head, finished, failed, cancelled.

    A person in several photos also has matched, and a video frames, video, person and overlay.

    The stream begins with everything that has happened before, or after the header Last-Event-ID.
    """
    last = request.headers.get("last-event-id", "")
    start = int(last) + 1 if last.isdecimal() and len(last) < 10 else 0
    return StreamingResponse(_stream(job, start), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@_api.post(
    "/api/jobs/{job_id}/pins",
    status_code=202,
    responses={
        **NOT_FOUND,
        **NO_JSON,
        **REFUSED,
        409: {"model": Problem, "description": "The photo has no such faces."},
    },
)
async def pin(
    jobs: TheJobs, before: TheJob, faces: Annotated[list[list[PlacedLandmark]], Field(max_length=64)]
) -> JobState:
    """Fit the faces of a photo again, with landmarks that the user has placed; a new job.

    The body has a list of landmarks for each face, in the order of `outlines`.
    """
    task, detected = _photo_task(before), before.detected.get(0)
    if detected is None or len(faces) > len(detected.faces):
        raise HTTPException(409, "pins are given for more faces than the photo shows; wait for the event `detected`.")
    pins = tuple(tuple((one.landmark, one.x, one.y) for one in face) for face in faces)
    return await submitted(jobs, await _with_copied_photo(jobs, replace(task, pins=pins)))


@_api.post(
    "/api/jobs/{job_id}/again",
    status_code=202,
    responses={**NOT_FOUND, **REFUSED, 409: {"model": Problem, "description": "The job has no photo."}},
)
async def again(jobs: TheJobs, before: TheJob, *, mode: Mode) -> JobState:
    """Reconstruct the same photo in another mode, with all other settings as before; a new job."""
    return await submitted(jobs, await _with_copied_photo(jobs, replace(_photo_task(before), mode=mode)))


@_api.post(
    "/api/jobs/{job_id}/faces/{face}/shape",
    status_code=202,
    responses={
        **NOT_FOUND,
        **NO_JSON,
        **REFUSED,
        409: {"model": Problem, "description": "The face is not finished."},
    },
)
async def shape(
    jobs: TheJobs, before: TheJob, face: int, strengths: Annotated[dict[str, Strength], Field(max_length=64)]
) -> JobState:
    """Write a finished face again with another shape; a new job.

    The body has strengths of sliders by their names, such as `identity:1` and `phenotype:age`. They are the morph
    targets of `detail.glb` with a colon in their names.
    """
    head = _head_of(before, face)
    if ARRAYS_FILE not in head.files:
        raise HTTPException(409, "the face is not finished, or was made without the format npz; send the photo again.")
    folder = jobs.new_folder()
    await asyncio.to_thread(_copy_result, before.task.folder / f"face{face}", folder / SOURCE_NAME)
    return await submitted(jobs, ShapeTask(folder, face, tuple(strengths.items())))


@_api.get(
    "/api/jobs/{job_id}/faces/{face}/{name}",
    responses={**NOT_FOUND, 200: {"content": {"application/octet-stream": {}}}},
    response_class=FileResponse,
)
async def file(job: TheJob, face: int, name: str) -> FileResponse:
    """Download a file of a face."""
    head = _head_of(job, face)
    if name not in head.files or name not in _DOWNLOADS:
        raise HTTPException(404, "there is no such file; the job's state lists them.")
    path = job.task.folder / f"face{face}" / name
    return FileResponse(
        path,
        media_type=_CONTENT_TYPES.get(path.suffix),
        filename=name,
        content_disposition_type="inline",
        headers={"Cache-Control": "no-store"},
    )


@_api.get(
    "/api/jobs/{job_id}/photo",
    responses={**NOT_FOUND, 200: {"content": {"image/jpeg": {}}}},
    response_class=FileResponse,
)
async def photo(job: TheJob) -> FileResponse:
    """The upright photo as a JPEG that browsers can show, at most 1600 pixels long."""
    return preview(job, 0)


@_api.get("/", include_in_schema=False)
async def page() -> RedirectResponse:
    """The page of the studio."""
    return RedirectResponse("/studio/index.html")


def make_app(jobs: Jobs) -> FastAPI:
    """The application over the jobs of a server.

    Args:
        jobs: They are started and stopped with the application.

    Returns:
        The application, without the guard.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await jobs.start()
        yield
        await jobs.stop()

    app = FastAPI(
        title="mien studio",
        version=__version__,
        description="Reconstruct 3D heads from photos on this machine.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )

    app.state.jobs = jobs
    app.include_router(_api)
    app.include_router(people.api)
    app.include_router(videos.api)
    app.mount("/studio", StaticFiles(directory=str(_static())), name="studio")
    return app


def _static() -> Path:
    return Path(str(files("mien.studio").joinpath("static")))


def _photo_task(job: Job) -> Task:
    if not isinstance(job.task, Task):
        raise HTTPException(409, "this job has no photo of its own; use the job of a single photo.")
    return job.task


async def _with_copied_photo(jobs: Jobs, task: Task) -> Task:
    """The same task in a folder of its own, since the earlier job may expire before the turn of this one."""
    folder = jobs.new_folder()
    await asyncio.to_thread(_copy, task.photo, folder / PHOTO_NAME)
    return replace(task, folder=folder, photo=folder / PHOTO_NAME)


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def _copy_result(source: Path, target: Path) -> None:
    """Copy what `Reconstruction.load` reads, since the earlier result may expire before the turn of this one."""
    target.mkdir()
    for name in (ARRAYS_FILE, COEFFICIENTS_FILE):
        _copy(source / name, target / name)


async def _stream(job: Job, start: int) -> AsyncIterator[str]:
    events = job.events(start)
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=_PING_S)
            if not done:
                yield ": still at work\n\n"
                continue
            found = following.result()
            if found is None:
                return
            yield _event(*found)
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)


_EVENT_NAMES = {"HeadReady": "head", "VideoOpened": "video", "PersonTracked": "person", "OverlayReady": "overlay"}


def _event(number: int, message: Message) -> str:
    """A message as a server-sent event. Progress has no number: a page that comes back needs no old one."""
    name = type(message).__name__
    head = f"event: {_EVENT_NAMES.get(name, name.lower())}\n"
    identity = "" if isinstance(message, Progress) else f"id: {number}\n"
    return f"{head}{identity}data: {json.dumps(asdict(message))}\n\n"
