"""The HTTP API: photo → job → events → files. The page uses it, and so can other programs."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat

from mien import __version__
from mien.errors import ConfigError
from mien.io.result_files import ARRAYS_FILE, COEFFICIENTS_FILE, FORMATS, RESULT_FILES, parse_formats
from mien.studio.jobs import Job, Jobs, QueueFull
from mien.studio.protocol import PREVIEW_NAME, SOURCE_NAME, STEP_FILES, HeadReady, Message, ShapeTask, Task

PHOTO_NAME = "photo"
"""Name of an uploaded file in its job's folder, whatever its name was."""
_PING_S = 10.0
"""How often a stream without news says that it is alive."""
_DOWNLOADS = RESULT_FILES | frozenset(STEP_FILES.values())
_CONTENT_TYPES = {".glb": "model/gltf-binary", ".obj": "model/obj", ".ply": "model/ply", ".npz": "application/zip"}


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


class JobState(BaseModel):
    """A photo and what is known of its faces."""

    id: str
    state: Literal["waiting", "running", "stopping", "done", "failed", "cancelled"]
    position: int = Field(description="Number of photos that come before it.")
    width: int | None = Field(description="Width of the upright photo in pixels.")
    height: int | None
    outlines: list[Outline]
    faces: list[Face]
    warnings: list[str]
    error: str | None = Field(description="Why the photo failed.")


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


Formats = Annotated[str, AfterValidator(_known_formats)]
"""Names of formats with commas."""
Mode = Annotated[Literal["auto", "fit", "net"], Query(description="How the face is found.")]
Strength = Annotated[FiniteFloat, Field(ge=-1, le=1)]
"""Strength of a slider of the shape."""


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such job or file, or it has expired."}
}
_NO_BODY: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "The body is empty."}}
_NO_JSON: dict[int | str, dict[str, Any]] = {400: {"model": Problem, "description": "The body is no JSON text."}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The file is too large."},
    503: {"model": Problem, "description": "Too many photos wait; try again later."},
}


_api = APIRouter()


def _jobs_of(request: Request) -> Jobs:
    return request.app.state.jobs


def _job_of(request: Request, job_id: str) -> Job:
    job = _jobs_of(request).get(job_id)
    if job is None:
        raise HTTPException(404, "there is no such job, or it has expired; send the photo again.")
    return job


TheJobs = Annotated[Jobs, Depends(_jobs_of)]
TheJob = Annotated[Job, Depends(_job_of)]


def _head_of(job: Job, face: int) -> HeadReady:
    if face not in job.heads:
        raise HTTPException(404, "there is no such face; the job's state lists them.")
    return job.heads[face]


async def _submitted(jobs: Jobs, task: Task | ShapeTask) -> JobState:
    try:
        return _state(jobs, await jobs.submit(task))
    except QueueFull:
        await asyncio.to_thread(shutil.rmtree, task.folder)
        raise HTTPException(503, "too many photos wait; try again later.", {"Retry-After": "10"}) from None


@_api.post(
    "/api/jobs",
    status_code=202,
    responses={**_NO_BODY, **_REFUSED},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def submit(
    request: Request,
    jobs: TheJobs,
    *,
    mode: Mode = "auto",
    detail: Annotated[bool, Query(description="Whether displacement and texture offset maps are made.")] = True,
    focal_px: Annotated[FiniteFloat | None, Query(gt=0, description="Focal length in pixels.")] = None,
    formats: Annotated[
        Formats | None,
        Query(description=f"What to write, with commas: {', '.join(FORMATS)}. Default: all for downloads."),
    ] = None,
) -> JobState:
    """Send a photo, as the body of the request: JPEG, PNG, HEIC, AVIF, WebP, TIFF."""
    chosen = None if formats is None else parse_formats(formats)
    folder = jobs.new_folder()
    path, limits = folder / PHOTO_NAME, jobs.limits
    await _save_body(request, path, limits.upload_bytes)
    return await _submitted(jobs, Task(path, folder, mode, detail, focal_px, (), limits.max_pixels, chosen))


@_api.get("/api/jobs/{job_id}", responses=_NOT_FOUND)
async def state(jobs: TheJobs, job: TheJob) -> JobState:
    """What is known of a photo."""
    return _state(jobs, job)


@_api.delete("/api/jobs/{job_id}", status_code=204, responses=_NOT_FOUND)
async def remove(jobs: TheJobs, job: TheJob) -> None:
    """Stop the work on a photo, and remove it and its results."""
    jobs.remove(job)


@_api.get(
    "/api/jobs/{job_id}/events",
    responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
    response_class=StreamingResponse,
)
async def events(job: TheJob, request: Request) -> StreamingResponse:
    """What happens to a photo, as server-sent events: stage, detected, head, finished, failed, cancelled.

    The stream begins with everything that has happened before, or after the header Last-Event-ID.
    """
    last = request.headers.get("last-event-id", "")
    start = int(last) + 1 if last.isdecimal() and len(last) < 10 else 0
    return StreamingResponse(_stream(job, start), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@_api.post(
    "/api/jobs/{job_id}/pins",
    status_code=202,
    responses={
        **_NOT_FOUND,
        **_NO_JSON,
        **_REFUSED,
        409: {"model": Problem, "description": "The photo has no such faces."},
    },
)
async def pin(
    jobs: TheJobs, before: TheJob, faces: Annotated[list[list[PlacedLandmark]], Field(max_length=64)]
) -> JobState:
    """Fit the faces of a photo again, with landmarks that the user has placed; a new job.

    The body has a list of landmarks for each face, in the order of `outlines`.
    """
    task = _photo_task(before)
    if before.detected is None or len(faces) > len(before.detected.faces):
        raise HTTPException(409, "pins are given for more faces than the photo shows; wait for the event `detected`.")
    pins = tuple(tuple((one.landmark, one.x, one.y) for one in face) for face in faces)
    return await _submitted(jobs, await _with_copied_photo(jobs, replace(task, pins=pins)))


@_api.post(
    "/api/jobs/{job_id}/again",
    status_code=202,
    responses={**_NOT_FOUND, **_REFUSED, 409: {"model": Problem, "description": "The job has no photo."}},
)
async def again(jobs: TheJobs, before: TheJob, *, mode: Mode) -> JobState:
    """Reconstruct the same photo in another mode, with all other settings as before; a new job."""
    return await _submitted(jobs, await _with_copied_photo(jobs, replace(_photo_task(before), mode=mode)))


@_api.post(
    "/api/jobs/{job_id}/faces/{face}/shape",
    status_code=202,
    responses={
        **_NOT_FOUND,
        **_NO_JSON,
        **_REFUSED,
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
    return await _submitted(jobs, ShapeTask(folder, face, tuple(strengths.items())))


@_api.get(
    "/api/jobs/{job_id}/faces/{face}/{name}",
    responses={**_NOT_FOUND, 200: {"content": {"application/octet-stream": {}}}},
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
    responses={**_NOT_FOUND, 200: {"content": {"image/jpeg": {}}}},
    response_class=FileResponse,
)
async def photo(job: TheJob) -> FileResponse:
    """The upright photo as a JPEG that browsers can show, at most 1600 pixels long."""
    if job.detected is None:
        raise HTTPException(404, "the photo has not been read; wait for the event `detected`.")
    return FileResponse(job.task.folder / PREVIEW_NAME, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@_api.get("/api/examples", response_model=list[str])
async def examples() -> list[str]:
    """Names of the example photos."""
    return sorted(path.name for path in _static().joinpath("examples").iterdir())


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
    app.mount("/studio", StaticFiles(directory=str(_static())), name="studio")
    return app


def _static() -> Path:
    return Path(str(files("mien.studio").joinpath("static")))


async def _save_body(request: Request, path: Path, largest: int) -> None:
    """Write the body of a request into a file, up to a size.

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
            raise HTTPException(400, "the request has no body; send the bytes of a photo.")
    except BaseException:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
        raise


def _photo_task(job: Job) -> Task:
    if isinstance(job.task, ShapeTask):
        raise HTTPException(409, "a changed shape has no photo; use the job of the photo.")
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


def _state(jobs: Jobs, job: Job) -> JobState:
    detected = job.detected
    return JobState(
        id=job.id,
        state=job.state,  # pyright: ignore[reportArgumentType]  (one of them)
        position=jobs.position(job),
        width=None if detected is None else detected.width,
        height=None if detected is None else detected.height,
        outlines=[] if detected is None else [Outline(**asdict(face)) for face in detected.faces],
        faces=[Face(**asdict(job.heads[k])) for k in sorted(job.heads)],
        warnings=list(job.warnings),
        error=None if job.failure is None else job.failure.reason,
    )


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


_EVENT_NAMES = {"HeadReady": "head"}


def _event(number: int, message: Message) -> str:
    """A message as a server-sent event. Stages have no number: a page that comes back needs no old ones."""
    name = type(message).__name__
    head = f"event: {_EVENT_NAMES.get(name, name.lower())}\n"
    identity = "" if name == "Stage" else f"id: {number}\n"
    return f"{head}{identity}data: {json.dumps(asdict(message))}\n\n"
