"""Requests for videos: send one, and get it back for the page, with the files of each person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import FileResponse

from mien.studio.jobs import Job
from mien.studio.protocol import VideoTask
from mien.studio.requests import (
    FILE_BODY,
    NO_BODY,
    NOT_FOUND,
    REFUSED,
    FocalPx,
    JobState,
    TheJob,
    TheJobs,
    save_new,
    submitted,
)

VIDEO_NAME = "video"
"""Name of an uploaded file in its job's folder, whatever its name was."""
_FILES = {
    "head.glb": "model/gltf-binary",
    "blendshapes.csv": "text/csv",
    "tracking.npz": "application/zip",
    "sheet.png": "image/png",
}
"""Files of a person, with their types."""
_WEBM_START = b"\x1a\x45\xdf\xa3"

api = APIRouter()


def _video_job(job: TheJob) -> Job:
    """The job of a video.

    Raises:
        HTTPException: The job is another one.
    """
    if not isinstance(job.task, VideoTask):
        raise HTTPException(404, "this job is no video; send one with POST /api/videos.")
    return job


VideoJob = Annotated[Job, Depends(_video_job)]


@api.post("/api/videos", status_code=202, responses={**NO_BODY, **REFUSED}, openapi_extra=FILE_BODY)
async def submit_video(
    request: Request,
    jobs: TheJobs,
    *,
    mode: Annotated[
        Literal["net", "fit"], Query(description="How expressions are found: points and encoder, or points alone.")
    ] = "net",
    focal_px: FocalPx = None,
    max_faces: Annotated[int | None, Query(ge=1, le=1000, description="Maximum number of faces at a time.")] = None,
) -> JobState:
    """Send a video, as the body of the request: MP4, MOV, WebM and whatever else FFmpeg reads."""
    limits = jobs.limits
    path = await save_new(request, jobs, VIDEO_NAME, limits.video_bytes)
    return await submitted(jobs, VideoTask(path, path.parent, mode, focal_px, max_faces, limits.video_seconds))


@api.get(
    "/api/videos/{job_id}/video",
    responses={**NOT_FOUND, 200: {"content": {"video/mp4": {}}}},
    response_class=FileResponse,
)
async def video(job: VideoJob) -> FileResponse:
    """The video as it was sent; parts of it with the header Range."""
    assert isinstance(job.task, VideoTask)
    with job.task.video.open("rb") as file:
        is_webm = file.read(len(_WEBM_START)) == _WEBM_START
    return _response(job.task.video, "video/webm" if is_webm else "video/mp4")


@api.get(
    "/api/videos/{job_id}/overlay.mp4",
    responses={**NOT_FOUND, 200: {"content": {"video/mp4": {}}}},
    response_class=FileResponse,
)
async def overlay(job: VideoJob) -> FileResponse:
    """The video with the shape of each person over it."""
    if not job.has_overlay:
        raise HTTPException(404, "the overlay is not finished; wait for the event `overlay`.")
    assert isinstance(job.task, VideoTask)
    return _response(job.task.overlay, "video/mp4")


@api.get(
    "/api/videos/{job_id}/people/{person}/{name}",
    responses={**NOT_FOUND, 200: {"content": {"application/octet-stream": {}}}},
    response_class=FileResponse,
)
async def person_file(job: VideoJob, person: int, name: str) -> FileResponse:
    """Download a file of a person."""
    known = job.people.get(person)
    if known is None or name not in known.files or name not in _FILES:
        raise HTTPException(404, "there is no such file; the job's state lists them.")
    return _response(job.task.folder / f"person{person}" / name, _FILES[name])


def _response(path: Path, content_type: str) -> FileResponse:
    return FileResponse(
        path,
        media_type=content_type,
        filename=path.name,
        content_disposition_type="inline",
        headers={"Cache-Control": "no-store"},
    )
