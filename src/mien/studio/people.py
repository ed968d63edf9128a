"""Requests for several photos of one person: begin a person, send its photos one by one, start the work.

Each photo is a request of its own, its bytes as the body, so that each can be refused or sent again alone and no parser
of multipart bodies is needed. The person is a job like others, with the same events and files.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import FileResponse

from mien.studio.jobs import Job, QueueFull
from mien.studio.protocol import PersonTask
from mien.studio.requests import (
    FILE_BODY,
    NO_BODY,
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
    queue_full,
    save_body,
    state_of,
)

api = APIRouter()


def _collecting(job: TheJob) -> Job:
    """The person whose photos are still to come.

    Raises:
        HTTPException: The job is another one, or the work has started.
    """
    if not isinstance(job.task, PersonTask):
        raise HTTPException(404, "this job is no person; begin one with POST /api/people.")
    if job.state != "collecting":
        raise HTTPException(409, "the work on this person has started; begin another with POST /api/people.")
    return job


Collecting = Annotated[Job, Depends(_collecting)]
_STARTED = {409: {"model": Problem, "description": "The work has started, or the photos are too few."}}


@api.post("/api/people", status_code=201, responses={503: REFUSED[503]})
async def begin(jobs: TheJobs, *, mode: Mode = "auto", detail: WithDetail = True, focal_px: FocalPx = None) -> JobState:
    """Begin a person; the photos come next, each with PUT."""
    folder = jobs.new_folder()
    try:
        return state_of(jobs, jobs.collect(PersonTask(folder, (), mode, detail, focal_px, jobs.limits.max_pixels)))
    except QueueFull:
        folder.rmdir()
        raise queue_full() from None


@api.put(
    "/api/people/{job_id}/photos/{number}",
    status_code=204,
    responses={**NOT_FOUND, **NO_BODY, 409: _STARTED[409], 413: REFUSED[413]},
    openapi_extra=FILE_BODY,
)
async def put_photo(jobs: TheJobs, job: Collecting, number: int, request: Request) -> None:
    """Send a photo of the person as the body of the request. Numbers count from 0; the same number replaces a photo."""
    limits, task = jobs.limits, job.task
    assert isinstance(task, PersonTask)
    if not 0 <= number < limits.person_photos:
        raise HTTPException(413, f"a person has at most {limits.person_photos} photos, numbered from 0.")
    partial = task.folder / f".{secrets.token_hex(8)}"
    size = await save_body(request, partial, limits.upload_bytes)
    # Other photos may have come, and the work may have started, while this one came.
    others = sum(bytes_ for photo, bytes_ in job.uploads.items() if photo != number)
    if others + size > limits.person_bytes:
        partial.unlink(missing_ok=True)
        raise HTTPException(413, f"the photos have more than {limits.person_bytes / 1e6:g} MB; use smaller or fewer.")
    if job.state != "collecting":
        partial.unlink(missing_ok=True)
        raise HTTPException(409, "the work on this person has started.")
    partial.replace(task.photo_path(number))
    job.uploads[number] = size


@api.post("/api/people/{job_id}/start", status_code=202, responses={**NOT_FOUND, **_STARTED, 503: REFUSED[503]})
async def start(jobs: TheJobs, job: Collecting) -> JobState:
    """Start the work on a person, after at least two photos have come; now it is a job like others."""
    assert isinstance(job.task, PersonTask)
    if len(job.uploads) < 2:
        raise HTTPException(409, "a person needs at least two photos; send a single one to /api/jobs.")
    job.task = replace(job.task, photos=tuple(sorted(job.uploads)))
    try:
        await jobs.start_work(job)
    except QueueFull:
        raise queue_full() from None
    return state_of(jobs, job)


@api.get(
    "/api/people/{job_id}/photos/{number}",
    responses={**NOT_FOUND, 200: {"content": {"image/jpeg": {}}}},
    response_class=FileResponse,
)
async def photo(job: TheJob, number: int) -> FileResponse:
    """An upright photo of the person as a JPEG that browsers can show, at most 1600 pixels long."""
    return preview(job, number)
