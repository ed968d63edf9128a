"""The commands `mien studio` and `mien view`."""
# ruff: noqa: PLC0415 (heavy packages are imported inside the commands), PLR0917 (options are named by typer)

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mien.cli.options import DeviceOption
from mien.cli.terminal import printable, stderr
from mien.errors import BackendUnavailable


def studio(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Others than this machine's need the token that is shown.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 7860,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int, typer.Option(min=1, help="Number of photos, people and videos worked on at the same time.")
    ] = 1,
    max_waiting: Annotated[int, typer.Option(min=1, help="Number of photos, people and videos that may wait.")] = 32,
    max_upload_mb: Annotated[float, typer.Option(min=0.1, help="Maximum size of a photo's file in megabytes.")] = 50,
    max_person_mb: Annotated[
        float, typer.Option(min=0.1, help="Maximum size of all photos of one person in megabytes.")
    ] = 500,
    max_video_mb: Annotated[float, typer.Option(min=0.1, help="Maximum size of a video's file in megabytes.")] = 500,
    max_video_seconds: Annotated[float, typer.Option(min=1, help="Maximum length of a video.")] = 300,
    seconds: Annotated[
        float, typer.Option(min=1, help="Maximum time for a photo, and for each photo of a person.")
    ] = 120,
    memory_gb: Annotated[
        float, typer.Option(min=0, help="Maximum memory of each process in gigabytes (Linux); 0 for no limit.")
    ] = 8,
    keep_minutes: Annotated[float, typer.Option(min=0.1, help="Time after which unused results are removed.")] = 60,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page on this machine to reconstruct photos, look at heads and download them. No photo leaves it."""
    import os

    try:
        from mien.studio.server import serve
    except ImportError as error:
        raise BackendUnavailable(
            f"mien studio needs the package {error.name!r}; install it with: pip install 'mien[studio]'"
        ) from error
    from mien.scale.processes import core_count
    from mien.studio.jobs import Limits

    limits = Limits(
        upload_bytes=round(max_upload_mb * 1e6),
        person_bytes=round(max_person_mb * 1e6),
        video_bytes=round(max_video_mb * 1e6),
        video_seconds=max_video_seconds,
        waiting=max_waiting,
        seconds=seconds,
        keep_s=60 * keep_minutes,
    )

    def started(address: str) -> None:
        stderr().print(f"mien studio is at {address}  (Ctrl-C ends it)", soft_wrap=True, highlight=False)
        if open_browser and not os.environ.get("CI"):
            webbrowser.open(address)

    serve(
        host=host,
        port=port,
        limits=limits,
        workers=workers,
        device=device,
        threads=max(1, core_count() // workers),
        memory_bytes=round(memory_gb * 1e9),
        started=started,
    )


def view(
    result: Annotated[Path, typer.Argument(exists=True, help="A result folder of one face, or a GLB file.")],
    *,
    html: Annotated[Path | None, typer.Option(help="The file to write. Default: view.html beside the GLB.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Show a head in the browser: one HTML file, which can be sent to people without mien."""
    from mien.export.html import write_view

    path = write_view(result, html)
    stderr().print(printable(str(path)), soft_wrap=True, highlight=False)
    if open_browser:
        webbrowser.open(path.resolve().as_uri())
