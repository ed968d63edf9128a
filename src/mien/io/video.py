"""Frames of videos, of folders of pictures and of webcams, upright and as 8-bit sRGB; and a writer of videos.

PyAV (FFmpeg) reads the files. It is an extra, `mien[video]`, and imported at the first use. Frames come in the order in
which they are shown, with the times of the file: a variable frame rate stays one.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.errors import BackendUnavailable, FramesLeftOut, ImageError, VideoError
from mien.io.hdr import HLG, PQ, hdr_to_srgb
from mien.io.photo import read_photo
from mien.io.photo_files import MAX_PIXELS, find_photos
from mien.typing import UInt8

if TYPE_CHECKING:
    from types import ModuleType

FOLDER_RATE = 25.0
"""Pictures per second of a folder, if no rate is given."""
SMALLEST_SIDE = 32
"""Least width and height of a frame, pixels: as for photos."""
_CLOCK = 90_000
"""Ticks per second of written videos: that of MPEG, in which the usual frame rates are whole numbers of ticks."""
_HD_ROWS = 720
"""From this height on, a video that does not name its colour matrix has BT.709, as players assume; below, BT.601."""
_BT709, _UNSPECIFIED, _BT601, _BT2020 = 1, 2, 5, 9
_FULL_RANGE = 2
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""FFmpeg's input and name of a webcam per system."""
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first one that FFmpeg was built with writes videos; all browsers and players show the first two."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video before its frames are read."""

    name: str
    """The file or folder, or camera0."""
    size: tuple[int, int]
    """Width and height of the upright frames, pixels."""
    rate: float
    """Mean number of frames per second."""
    frames: int | None
    """Number of frames, as far as the file tells; None for webcams and files that do not tell. An estimate."""
    is_live: bool = False
    """Whether frames come at their own pace and cannot be read again."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One decoded frame."""

    index: int
    """Number of the frame, from 0."""
    time_s: float
    """When it is shown, seconds from the first frame."""
    pixels: UInt8[np.ndarray, "H W 3"]
    """sRGB, upright."""


class Video:
    """A video that is open for reading; `open_video` makes it.

    Iterate it once for its frames. `skip` leaves out frames at less than the cost of decoding and converting them.
    """

    def __init__(self, info: VideoInfo, frames: Iterator[_Raw]) -> None:
        self.info = info
        self._frames = frames

    def frames(self, *, skip: int = 0) -> Iterator[VideoFrame]:
        """The frames from number `skip` on.

        Args:
            skip: Frames that are decoded, because later ones depend on them, but not converted.

        Raises:
            VideoError: The file has no frame, or its frames change their size.

        Warns:
            FramesLeftOut: Frames are damaged and missing.
        """
        count, last = 0, -math.inf
        for raw in self._frames:
            time_s = raw.time_s
            if time_s <= last:  # broken files repeat times, and animations need rising ones
                time_s = last + 0.5 / self.info.rate
            last = time_s
            if count >= skip:
                pixels = raw.pixels()
                self._check_size(pixels, count)
                yield VideoFrame(count, time_s, pixels)
            count += 1
        if count == 0:
            raise VideoError(f"{self.info.name}: it has no frame that can be decoded; copy it again or export it anew.")

    def picked(self, indices: Collection[int]) -> Iterator[VideoFrame]:
        """Some of the frames, by their numbers, in rising order; the frames after the last one are not decoded."""
        wanted, last = frozenset(indices), max(indices, default=-1)
        if not wanted:
            return
        for index, raw in enumerate(self._frames):
            if index in wanted:
                yield VideoFrame(index, raw.time_s, raw.pixels())
            if index == last:
                return

    def _check_size(self, pixels: UInt8[np.ndarray, "H W 3"], index: int) -> None:
        height, width = pixels.shape[:2]
        if (width, height) != self.info.size:
            first = "{} × {}".format(*self.info.size)
            raise VideoError(
                f"{self.info.name}: frame {index} is {width} × {height} and the first one {first}; export the video "
                "with one size."
            )


@dataclass(frozen=True)
class _Raw:
    """A frame before its colours are converted."""

    time_s: float
    source: Any
    convert: Any

    def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
        return self.convert(self.source)


@contextmanager
def open_video(source: str | os.PathLike[str] | int, *, rate: float | None = None) -> Iterator[Video]:
    """Open a video file, a folder of pictures, or a webcam.

    Args:
        source: A path, or the number of a webcam (also as text), from 0.
        rate: Pictures per second of a folder; 25 by default. Files and webcams have their own.

    Yields:
        The video, closed at the end of the block.

    Raises:
        VideoError: The file is missing, damaged, has no picture or too many pixels.
        BackendUnavailable: PyAV is not installed, or it has no access to webcams here.
    """
    text = os.fspath(source) if not isinstance(source, int) else str(source)
    if Path(text).is_dir():
        yield _open_folder(Path(text), rate or FOLDER_RATE)
        return
    av = load_av()
    is_camera = text.isdecimal() and not Path(text).exists()
    with _translated(av, f"camera {text}" if is_camera else text):
        container = _open_camera(av, int(text)) if is_camera else _open_file(av, text)
    try:
        yield _opened(av, container, text, is_camera=is_camera)
    finally:
        container.close()


def load_av() -> ModuleType:
    """PyAV.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        import av  # noqa: PLC0415 (an extra)
        import av.video.reformatter  # noqa: PLC0415
    except ImportError as error:
        raise BackendUnavailable("videos need the package av (PyAV); run pip install 'mien[video]'.") from error
    av.logging.set_level(None)  # FFmpeg's own messages; errors are raised
    return av


def _open_folder(folder: Path, rate: float) -> Video:
    with _as_video_error(folder):
        paths = find_photos([folder])
        height, width = read_photo(paths[0]).pixels.shape[:2]
    info = VideoInfo(str(folder), (width, height), rate, len(paths))
    return Video(info, (_Raw(k / rate, path, _photo_pixels) for k, path in enumerate(paths)))


def _photo_pixels(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    with _as_video_error(path):
        return read_photo(path).pixels


@contextmanager
def _as_video_error(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise VideoError(f"{path} cannot be read as a frame: {error}") from error


def _open_file(av: ModuleType, path: str) -> Any:
    """Open a file, and nothing else: a name like a URL is a name, and playlists cannot lead to the network."""
    return av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})


def _open_camera(av: ModuleType, number: int) -> Any:
    system = "linux" if sys.platform.startswith("linux") else sys.platform
    device, name = _CAMERAS.get(system, ("", ""))
    if device not in av.formats_available:
        raise BackendUnavailable(
            f"this build of PyAV cannot read webcams (FFmpeg's {device or 'input for ' + system}); build PyAV against "
            "the system's FFmpeg: pip install av --no-binary av"
        )
    return av.open(name.format(number), format=device)


@contextmanager
def _translated(av: ModuleType, name: str) -> Iterator[None]:
    """Turn FFmpeg's errors into a VideoError."""
    try:
        yield
    except FileNotFoundError as error:
        raise VideoError(f"{name}: there is no such file or camera; check the name.") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{name}: it cannot be read as a video ({reason}); copy it again or export it anew."
        raise VideoError(message) from error


def _opened(av: ModuleType, container: Any, name: str, *, is_camera: bool) -> Video:
    """Decode the first frame, from which size and rotation follow, and wrap it with those after it."""
    cover = av.stream.Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None:
        raise VideoError(f"{name}: it has no moving picture, only sound, text or a cover; choose a video.")
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
    context = stream.codec_context
    if context is None:
        raise VideoError(f"{name}: damaged, or FFmpeg cannot decode it; copy it again or convert it to H.264.")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width} × {context.height}"
        raise VideoError(f"{name}: {size} is too large; reduce it to {MAX_PIXELS // 10**6} megapixels.")
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    decoded = _decoded(av, container, stream, name)
    with _translated(av, name):
        first = next(decoded, None)
    if first is not None and first.interlaced_frame:
        size = first.width, first.height
        decoded = _deinterlaced(av, stream, itertools.chain([first], decoded), size=size, name=name)
        first = next(decoded, None)
    if first is None:
        raise VideoError(f"{name}: it has no frame that can be decoded; copy it again or export it anew.")
    converter = _Converter(av, aspect)
    width, height = converter.size(first)
    if min(width, height) < SMALLEST_SIDE:
        raise VideoError(f"{name}: {width} × {height} is too small; use at least {SMALLEST_SIDE} pixels a side.")
    frames = None if is_camera else _frame_count(stream, container, rate)
    info = VideoInfo(f"camera{name}" if is_camera else name, (width, height), rate, frames, is_live=is_camera)
    return Video(info, _timed(first, decoded, converter, rate))


def _frame_count(stream: Any, container: Any, rate: float) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return max(round(float(stream.duration * stream.time_base) * rate), 1)
    return max(round(container.duration / 1e6 * rate), 1) if container.duration else None


def _decoded(av: ModuleType, container: Any, stream: Any, name: str) -> Iterator[Any]:
    """All frames that can be decoded; damaged packets are left out, and counted in a warning at the end."""
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:  # the rest of the file is missing
            damaged += 1
            break
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                damaged += 1
            else:
                yield frame
    if damaged:
        warnings.warn(
            FramesLeftOut(f"{name}: {damaged} damaged parts were left out; copy the file again."), stacklevel=2
        )


def _deinterlaced(
    av: ModuleType, stream: Any, frames: Iterator[Any], *, size: tuple[int, int], name: str
) -> Iterator[Any]:
    """Frames whose lines belong to one moment: a head that moves has combs at its edges otherwise."""
    with _translated(av, name):
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        # One frame per frame; progressive ones pass unchanged.
        deinterlacer, sink = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
        source.link_to(deinterlacer)
        deinterlacer.link_to(sink)
        graph.configure()
        for frame in itertools.chain(frames, [None]):
            if frame is not None and (frame.width, frame.height) != size:
                yield frame  # which is refused: the filter would cut it without an error
                return
            graph.push(frame)
            with suppress(av.error.BlockingIOError, av.error.EOFError):  # it wants the next frame, or has no more
                while True:
                    yield graph.pull()


def _timed(first: Any, others: Iterator[Any], converter: _Converter, rate: float) -> Iterator[_Raw]:
    start, count = first.time, 0

    def raw(frame: Any) -> _Raw:
        time_s = count / rate if frame.time is None or start is None else frame.time - start
        return _Raw(time_s, frame, converter)

    yield raw(first)
    for frame in others:
        count += 1
        yield raw(frame)


class _Converter:
    """Turns FFmpeg's frames into upright sRGB with square pixels."""

    def __init__(self, av: ModuleType, aspect: float) -> None:
        self._reformatter, self._aspect = av.video.reformatter, aspect
        self._scaler = av.video.reformatter.VideoReformatter()

    def size(self, frame: Any) -> tuple[int, int]:
        """Width and height of the upright picture."""
        width, height = self._square_size(frame)
        return (height, width) if round(frame.rotation / 90) % 2 else (width, height)

    def _square_size(self, frame: Any) -> tuple[int, int]:
        wide = self._aspect >= 1
        width = round(frame.width * self._aspect) if wide else frame.width
        return width, frame.height if wide else round(frame.height / self._aspect)

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "H W 3"]:
        width, height = self._square_size(frame)
        is_hdr = frame.color_trc in {PQ, HLG}
        converted = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format="rgb48le" if is_hdr else "rgb24",
            src_colorspace=self._matrix(frame),
            src_color_range=frame.color_range or None,
            dst_color_range=_FULL_RANGE,
            interpolation=self._reformatter.Interpolation.BICUBIC,
        )
        pixels = converted.to_ndarray()
        if is_hdr:
            pixels = hdr_to_srgb(pixels, transfer=frame.color_trc)
        # FFmpeg counts the turn of the picture counter-clockwise, and so does NumPy.
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def _matrix(self, frame: Any) -> int | None:
        """Which of FFmpeg's matrices leads to RGB; None where the frame names one."""
        spaces = self._reformatter.Colorspace
        if frame.color_trc in {PQ, HLG}:
            return int(spaces.BT2020)
        if frame.colorspace != _UNSPECIFIED:
            return None
        return int(spaces.ITU709 if min(frame.width, frame.height) >= _HD_ROWS else spaces.ITU601)


class VideoWriter:
    """Writes frames with their times as H.264 in an MP4; use it as a context manager.

    Args:
        path: The file; its ending does not matter.
        size: Width and height of the frames; odd ones lose a column or row.
        rate: Mean number of frames per second.
        crf: Constant rate factor of x264; a smaller one gives better pictures and larger files.

    Raises:
        BackendUnavailable: PyAV is not installed.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], rate: float, crf: int = 20) -> None:
        av = load_av()
        self._av, self._size = av, (size[0] // 2 * 2, size[1] // 2 * 2)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        stream = self._container.add_stream(encoder, rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        # One frame is shown until the next: times are exact, and not rounded to a constant rate.
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        if encoder == "libx264":
            # With mbtree, x264 in PyAV 18.1 gives equal pictures other bits from run to run; without, files of the same
            # crf are a quarter larger.
            stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        else:
            stream.bit_rate = 8_000_000
        context = stream.codec_context
        context.colorspace, context.color_range = _BT709, 1
        context.color_primaries = context.color_trc = _BT709
        self._stream, self._is_closed = stream, False

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(Exception):  # the first error counts
                self._container.close()

    def close(self) -> None:
        """Write what is left and close the file; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._container.mux(self._stream.encode())
            self._container.close()

    def add(self, pixels: UInt8[np.ndarray, "H W 3"], time_s: float) -> None:
        """Add a frame that is shown from `time_s` on."""
        width, height = self._size
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=self._av.video.reformatter.Colorspace.ITU709,
            dst_color_range=1,
            src_color_range=_FULL_RANGE,
        )
        frame.time_base, frame.pts = Fraction(1, _CLOCK), round(time_s * _CLOCK)
        self._container.mux(self._stream.encode(frame))
