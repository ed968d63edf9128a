"""Reading and writing videos. The files are made here, with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import BackendUnavailable, FramesLeftOut, VideoError
from mien.io import video as video_module
from mien.io.hdr import HLG, PQ, hdr_to_srgb
from mien.io.video import VideoWriter, open_video

av = pytest.importorskip("av", reason="reads and writes the videos")

# Skin, blue, white and black, one in each quarter: no colour is the same after a turn.
COLOURS = np.array([[200, 120, 90], [30, 60, 200], [240, 240, 240], [16, 16, 16]], np.uint8)


def quarters(width: int = 96, height: int = 64) -> np.ndarray:
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = COLOURS[:2]
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = COLOURS[2:]
    return picture


def middles(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return picture[height // 4 :: height // 2, width // 4 :: width // 2].reshape(-1, 3).astype(int)


def write(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    matrix: int = 5,
    colour_range: int = 1,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        context.time_base = Fraction(1, 1000)
        context.colorspace, context.color_range = matrix, colour_range
        if rotation:
            stream.set_display_rotation(rotation)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=matrix, dst_color_range=colour_range, src_color_range=2
            )
            frame.time_base, frame.pts = Fraction(1, 1000), (40 * k if times_ms is None else times_ms[k])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path | str, **arguments: float) -> list[video_module.VideoFrame]:
    with open_video(path, **arguments) as video:
        return list(video.frames())


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 40, 100, 130, 200, 333, 380, 500]
    frames = frames_of(write(tmp_path / "a.mp4", [quarters()] * 8, times_ms=times))
    assert [round(1000 * frame.time_s) for frame in frames] == times
    assert [frame.index for frame in frames] == list(range(8))


def test_times_begin_with_the_first_frame(tmp_path: Path) -> None:
    frames = frames_of(write(tmp_path / "a.ts", [quarters()] * 4, times_ms=[700, 740, 780, 820]))
    assert [round(1000 * frame.time_s) for frame in frames] == [0, 40, 80, 120]


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("colour_range", [1, 2])
def test_colours_are_those_of_matrix_and_range(tmp_path: Path, matrix: int, colour_range: int) -> None:
    path = write(tmp_path / "a.mp4", [quarters()] * 2, matrix=matrix, colour_range=colour_range)
    assert np.abs(middles(frames_of(path)[0].pixels) - COLOURS).max() <= 4


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_is_upright(tmp_path: Path, rotation: int) -> None:
    frame = frames_of(write(tmp_path / "a.mp4", [quarters()] * 2, rotation=rotation))[0]
    assert frame.pixels.shape[:2] == ((96, 64) if rotation % 180 else (64, 96))
    upright = np.rot90(quarters(), rotation // 90)
    assert np.abs(middles(frame.pixels) - middles(upright)).max() <= 4


def test_wide_pixels_become_square(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(), format="rgb24")))
        container.mux(stream.encode())
    with open_video(path) as video:
        assert video.info.size == (128, 64)
        assert next(video.frames()).pixels.shape == (64, 128, 3)


def test_ten_bits_of_standard_range_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", [quarters()] * 2, codec="ffv1", pixel_format="yuv420p10le")
    assert np.abs(middles(frames_of(path)[0].pixels) - COLOURS).max() <= 4


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_high_dynamic_range_is_mapped_to_srgb(transfer: int) -> None:
    # Reference white, 203 cd/m²: 58 % of the PQ signal and 75 % of HLG's (ITU-R BT.2408).
    white = {PQ: 0.58, HLG: 0.75}[transfer]
    levels = np.array([0.0, 0.5 * white, white, 1.0])
    grey = np.repeat((65535 * levels).astype(np.uint16)[None, :, None], 3, axis=2)
    mapped = hdr_to_srgb(grey, transfer=transfer)[0].astype(int)
    assert (np.ptp(mapped, axis=1) <= 1).all()  # greys stay grey
    assert (np.diff(mapped[:, 0]) > 0).all()
    assert mapped[0, 0] == 0
    assert 225 <= mapped[2, 0] <= 240
    assert mapped[3, 0] >= 250


def test_hdr_video_is_read_with_its_transfer(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, PQ, 1
        luma = np.full((64, 64), 64 + round(0.58 * 876), np.uint16)
        chroma = np.full((32, 64), 512, np.uint16)
        frame = av.VideoFrame.from_ndarray(np.concatenate([luma, chroma]), format="yuv420p10le")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(frames_of(path)[0].pixels.astype(int) - 232).max() <= 6


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    assert len(frames_of(write(tmp_path / "a.mp4", [quarters()]))) == 1


def test_large_frames_are_read(tmp_path: Path) -> None:
    frames = frames_of(write(tmp_path / "a.mp4", [quarters(3840, 2160)]))
    assert frames[0].pixels.shape == (2160, 3840, 3)


def test_skipped_frames_keep_numbers_and_times(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [quarters()] * 6)
    with open_video(path) as video:
        frames = list(video.frames(skip=4))
    assert [(frame.index, round(frame.time_s, 3)) for frame in frames] == [(4, 0.16), (5, 0.2)]
    with open_video(path) as video:
        assert [frame.index for frame in video.picked([1, 3])] == [1, 3]


def audio_only(path: Path, *, cover: bool = False) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            drawn = av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format="yuvj420p")
            drawn.pts = 0
            container.mux(picture.encode(drawn))
            container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_unreadable_files_are_typed_errors(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", [quarters()] * 5).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video, but long enough to look at" * 50)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            frames_of(tmp_path / name)
    with pytest.raises(VideoError, match="no moving picture"):
        frames_of(audio_only(tmp_path / "sound.mp4"))
    with pytest.raises(VideoError, match="no moving picture"):
        frames_of(audio_only(tmp_path / "song.m4a", cover=True))
    with pytest.raises(VideoError, match="too small"):
        frames_of(write(tmp_path / "small.mp4", [quarters(16, 16)]))


def test_cut_off_stream_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    content = write(tmp_path / "a.ts", [np.roll(noise, k, axis=1) for k in range(20)]).read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[: len(content) // 2])
    with open_video(tmp_path / "cut.ts") as video:
        try:
            count = sum(1 for _ in video.frames())
        except FramesLeftOut:  # warnings are errors here; FFmpeg's versions differ in what they notice
            return
    assert 2 <= count < 20


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mov", "qtrle", "argb"),
        ("a.avi", "mjpeg", "yuvj422p"),
        ("a.mp4", "libx265", "yuv420p10le"),
        ("a.h264", "libx264", "yuv420p"),
    ],
)
def test_codecs_alpha_and_raw_streams_are_read(tmp_path: Path, name: str, codec: str, pixel_format: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
        stream.options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format=pixel_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = frames_of(path)
    # A raw stream has no times; then they follow from the rate.
    assert [round(frame.time_s, 3) for frame in frames] == [0, 0.04, 0.08]
    # Blocks of a lossy codec in so small a frame are off by up to 40 in red.
    assert np.median(np.abs(middles(frames[-1].pixels) - COLOURS)) <= 4


def write_interlaced(path: Path, *, side: int = 96) -> Path:
    """Six frames of an edge that moves by 8 pixels from field to field."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.options = {"x264-params": "tff=1", "crf": "4"}
        for k in range(6):
            picture = np.full((side, side, 3), 40, np.uint8)
            for field in (0, 1):
                picture[field::2, 8 * (2 * k + field) :] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_interlaced_video_has_no_combs(tmp_path: Path) -> None:
    frames = frames_of(write_interlaced(tmp_path / "a.mp4"))
    assert [round(frame.time_s, 3) for frame in frames] == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    edges = (frames[3].pixels[:, :, 1] > 120).argmax(1)[16:-16].astype(int)
    assert np.abs(np.diff(edges)).mean() < 2  # 8 where lines of two moments alternate


@pytest.mark.parametrize("side", [64, 128])
def test_interlaced_video_that_changes_its_size_is_refused(tmp_path: Path, side: int) -> None:
    parts = [write_interlaced(tmp_path / f"{size}.ts", side=size).read_bytes() for size in (96, side)]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match=f"is {side} × {side} and the first one 96 × 96"):
        frames_of(tmp_path / "a.ts")


def test_folder_of_pictures_is_a_video(tmp_path: Path) -> None:
    for k in range(3):
        Image.fromarray(np.roll(quarters(), k, axis=1)).save(tmp_path / f"{k}.png")
    frames = frames_of(tmp_path, rate=10.0)
    assert [frame.time_s for frame in frames] == [0, 0.1, 0.2]
    assert (frames[2].pixels == np.roll(quarters(), 2, axis=1)).all()
    Image.fromarray(quarters(64, 64)).save(tmp_path / "3.png")
    with pytest.raises(VideoError, match="frame 3 is 64 × 64"):
        frames_of(tmp_path)


def test_folder_without_pictures_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no photos"):
        frames_of(tmp_path)


def test_missing_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BackendUnavailable, match=r"mien\[video\]"):
        frames_of(tmp_path / "a.mp4")


def test_missing_webcam_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", name)

    monkeypatch.setattr(av, "formats_available", {"v4l2", "avfoundation", "dshow"})
    monkeypatch.setattr(av, "open", missing)
    with pytest.raises(VideoError, match="camera 9: there is no such file or camera"):
        frames_of("9")


def test_webcams_need_an_input_of_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "formats_available", set())
    with pytest.raises(BackendUnavailable, match="webcams"):
        frames_of("0")


def test_written_video_has_the_frames_and_times(tmp_path: Path) -> None:
    times = [0.0, 0.05, 0.1, 0.3]
    with VideoWriter(tmp_path / "a.mp4", size=(97, 65), rate=20.0) as writer:
        for time_s in times:
            writer.add(quarters(97, 65), time_s)
    frames = frames_of(tmp_path / "a.mp4")
    assert [round(frame.time_s, 3) for frame in frames] == times
    assert frames[0].pixels.shape == (64, 96, 3)
    assert np.abs(middles(frames[0].pixels) - COLOURS).max() <= 4
