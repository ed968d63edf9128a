"""Tracking on clips with known motion: jitter, lag, errors, identity, speed and memory.

python benchmarks/tracking.py --data ../shared/data --work build/tracking
python benchmarks/tracking.py --data ../shared/data --work build/tracking --only memory --frames 10000
python benchmarks/tracking.py --data ../shared/data --work build/tracking --only speed

The clips are made in the work folder: drawn heads with known curves (talk), two that cross (cross), one behind a board
under a shaking camera (board), three shots of two people (cuts); and photos of real people that are moved as a whole
(real; scans with changing brightness). `--mediapipe PYTHON` names an interpreter with mediapipe, whose face mesh runs
on the same clips.

Jitter: mean length of the second difference of the 68 landmarks in still stretches, pixels. Lag: shift in frames
between the tracked curve and the true one at which they fit best; positive is late. NME: mean error of the 51 inner
landmarks over the distance of the outer eye corners. Times are processor times of one thread, but those of the section
speed are what a clock on the wall shows, with --threads threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mien  # noqa: F401  (before torch: see mien.threads)

# isort: split
import numpy as np
import skimage.data
import torch
import tracking_clips as clips
from PIL import Image, ImageFilter

from mien.errors import NoFaceFound
from mien.io.photo import read_photo
from mien.io.video import open_video
from mien.morphable import load_model
from mien.perception import FaceDetector
from mien.perception import detector as detector_module
from mien.perception.detector import IMAGINED_SCATTER
from mien.perception.landmarks import landmarks68_from_mesh
from mien.pipeline import PhotoInputs, Reconstructor
from mien.result import Reconstruction
from mien.tracking import Track, Tracker
from mien.tracking.following import LARGEST_SCATTER
from mien.tracking.gaze import gaze_angles
from mien.tracking.live import LiveTracker, record
from mien.tracking.outputs import write_person, write_pictures

PORTRAITS = "abcdef"
STILL = ((2, 17), (29, 39))
"""Frames of `talking` in which nothing moves; a blink lies between them."""
REAL_STILL_S, REAL_S = 1.2, 3.2
SCANS, FLICKER = 4, 0.25
"""Photos of the section scans, and the share by which their brightness changes."""
CURVES = ("jawOpen", "mouthSmileLeft", "eyeBlinkLeft", "browInnerUp", "mouthPucker")
_MEDIAPIPE = """
import sys, json, av, numpy as np, mediapipe as mp, time
mesh = mp.solutions.face_mesh.FaceMesh(static_image_mode=False, refine_landmarks=True, max_num_faces=1)
points, start = [], time.process_time()
with av.open(sys.argv[1]) as container:
    for frame in container.decode(video=0):
        pixels = frame.to_ndarray(format="rgb24")
        found = mesh.process(pixels).multi_face_landmarks
        height, width = pixels.shape[:2]
        missing = np.full((468, 2), np.nan).tolist()
        points.append([[q.x * width, q.y * height] for q in found[0].landmark[:468]] if found else missing)
json.dump({"points": points, "seconds": time.process_time() - start}, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Truth:
    """What is known about a clip with one person."""

    landmarks68_px: np.ndarray
    """(F, 68, 2)"""
    expression: np.ndarray | None
    rotation: np.ndarray | None
    still: tuple[tuple[int, int], ...]
    moving: slice


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with demo")
    parser.add_argument("--work", type=Path, required=True, help="folder for clips and results")
    parser.add_argument(
        "--only", default="talk,real,cross,board,cuts,imagined", help="sections, with commas; also scans, speed, memory"
    )
    parser.add_argument("--mediapipe", type=Path, help="Python interpreter with mediapipe and av")
    parser.add_argument("--frames", type=int, default=600, help="frames of the sections speed and memory")
    parser.add_argument("--threads", type=int, default=2, help="threads of the section speed")
    parser.add_argument("--mode", default="net", choices=("net", "fit"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Callable[[argparse.Namespace], None]] = {
        "talk": talk, "real": real, "scans": scans, "cross": cross, "board": board, "cuts": cuts,
        "imagined": imagined, "speed": speed, "memory": memory,
    }  # fmt: skip
    for name in options.only.split(","):
        print(f"\n## {name}\n", flush=True)
        sections[name](options)
    return 0


# Clips


def head(options: argparse.Namespace, name: str) -> clips.DrawnHead:
    folder = options.work / f"portrait_{name}"
    if not folder.exists():
        photo = options.data / "demo" / f"portrait_{name}.jpg"
        Reconstructor(detail=False)(photo)[0].save(folder, formats="npz")
    return clips.DrawnHead(Reconstruction.load(folder), load_model())


def drawn(
    options: argparse.Namespace, name: str, frames: Callable[[], Iterator[clips.DrawnFrame]]
) -> tuple[Path, list[list[clips.Truth]]]:
    """The clip of this name, made if it is missing, and the truth of each frame."""
    path, truth_path = options.work / f"{name}.mp4", options.work / f"{name}.pickle"
    if not truth_path.exists():
        truths: list[list[clips.Truth]] = []

        def pixels() -> Iterator[np.ndarray]:
            for frame in frames():
                truths.append(frame.heads)
                yield frame.pixels

        clips.write_clip(path, pixels())
        truth_path.write_bytes(pickle.dumps(truths))
    return path, pickle.loads(truth_path.read_bytes())


def talk_clip(options: argparse.Namespace) -> tuple[Path, Truth]:
    made = head(options, "a")
    path, truths = drawn(options, "talk", lambda: clips.drawn_clip([made], lambda t: [clips.talking(t)], seconds=6))
    arrays = {name: np.array([getattr(frame[0], name) for frame in truths]) for name in vars(truths[0][0])}
    return path, Truth(arrays["landmarks68_px"], arrays["expression"], arrays["rotation"], STILL, slice(45, 145))


def loop_clip(options: argparse.Namespace) -> Path:
    """The clip talk, forwards and backwards, until it has as many frames as wanted."""
    path = options.work / f"loop{options.frames}.mp4"
    if not path.exists():
        with open_video(talk_clip(options)[0]) as video:
            pictures = [frame.pixels for frame in video.frames()]
        there_and_back = [*pictures, *pictures[-2:0:-1]]
        clips.write_clip(path, (there_and_back[k % len(there_and_back)] for k in range(options.frames)))
    return path


def real_clip(options: argparse.Namespace, name: str, photo_path: Path, *, flicker: float = 0.0) -> tuple[Path, Truth]:
    """A moved photo; its true landmarks are those detected in the photo, moved with it."""
    photo = read_photo(photo_path).pixels
    path, truth_path = options.work / f"real_{name}.mp4", options.work / f"real_{name}.npy"
    if not truth_path.exists():
        matrices = []

        def pixels() -> Iterator[np.ndarray]:
            for frame, matrix in clips.moved_photo(photo, seconds=REAL_S, still_s=REAL_STILL_S, flicker=flicker):
                matrices.append(matrix)
                yield frame

        clips.write_clip(path, pixels())
        np.save(truth_path, np.array(matrices))
    matrices = np.load(truth_path)
    face = Reconstructor(mode="net", detail=False).detector.detect(photo, max_faces=1)[0]
    points = np.einsum("tij,lj->tli", matrices[:, :, :2], face.landmarks68_px) + matrices[:, None, :, 2]
    first = round(REAL_STILL_S * clips.RATE)
    return path, Truth(points, None, None, ((2, first - 3),), slice(first + 5, len(points) - 5))


# Metrics


def jitter_px(landmarks: np.ndarray, still: Sequence[tuple[int, int]]) -> float:
    parts = [np.linalg.norm(np.diff(landmarks[a:b], n=2, axis=0), axis=-1).ravel() for a, b in still]
    return float(np.nanmean(np.concatenate(parts)))


def lag_frames(values: np.ndarray, truth: np.ndarray, moving: slice) -> float:
    """Shift at which a curve fits the truth best, up to an offset; positive if it is late."""
    frames, shifts = np.arange(len(truth)), np.arange(-3, 3.01, 0.1)
    errors = [np.nanstd(np.interp(frames[moving] + s, frames, values) - truth[moving]) for s in shifts]
    return float(shifts[int(np.argmin(errors))])


def eye_distance(truth: Truth) -> float:
    return float(np.linalg.norm(truth.landmarks68_px[:, 36] - truth.landmarks68_px[:, 45], axis=-1).max())


def report(name: str, landmarks: np.ndarray, truth: Truth, *, ms: float, expression: np.ndarray | None = None) -> float:
    nme = 100 * np.nanmean(np.linalg.norm(landmarks - truth.landmarks68_px, axis=-1)[:, 17:]) / eye_distance(truth)
    jitter = jitter_px(landmarks, truth.still)
    lag = lag_frames(landmarks[:, 30, 0], truth.landmarks68_px[:, 30, 0], truth.moving)
    text = f"| {name} | {jitter:.3f} | {lag:+.1f} | {nme:.2f} % | {ms:.0f} ms |"
    if expression is not None and truth.expression is not None:
        names = load_model().expression_names
        columns = [names.index(curve) for curve in CURVES]
        errors = np.sqrt(np.mean((expression - truth.expression)[:, columns] ** 2, axis=0))
        fits = [np.corrcoef(expression[:, c], truth.expression[:, c])[0, 1] for c in columns]
        text += "".join(f" {error:.3f} ({fit:.2f}) |" for error, fit in zip(errors, fits, strict=True))
    print(text, flush=True)
    return jitter


# Methods


def tracked(options: argparse.Namespace, path: Path, *, mode: str) -> tuple[list[Track], float]:
    """Tracks, and processor time per frame; results are kept in the work folder."""
    tracker = Tracker(mode=mode)
    work = options.work / f"run_{path.stem}_{mode}"
    for old in work.glob("*"):
        old.unlink()
    start = time.process_time()
    tracks = list(tracker(path, work))
    seconds = time.process_time() - start
    with open_video(path) as video:
        count = video.info.frames or len(tracks[0].frames)
    return tracks, 1000 * seconds / count


def frame_by_frame(path: Path, focal_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mode net of photos on each frame: landmarks, expressions, identities, and milliseconds per frame."""
    net = Reconstructor(mode="net", detail=False, max_faces=1)
    landmarks, expressions, identities, start = [], [], [], time.process_time()
    with open_video(path) as video:
        for frame in video.frames():
            faces = net.detector.detect(frame.pixels, max_faces=1)
            if not faces:
                raise NoFaceFound(f"{path}: frame {frame.index}")
            inputs = PhotoInputs.of(frame.pixels, faces, focal_px=focal_px, device=net.device)
            face = net.find_coefficients(inputs)
            vertices = net.model.vertices(face.identity, face.expression)[:, net.model.landmarks68]
            projected = inputs.targets.camera.project(face.pose.to_camera(vertices))[0].double()
            landmarks.append(inputs.faces[0].crop.to_photo(projected).numpy())
            expressions.append(face.expression[0].numpy())
            identities.append(face.identity[0].numpy())
    ms = 1000 * (time.process_time() - start) / len(landmarks)
    return np.array(landmarks), np.array(expressions), np.array(identities), ms


def live_tracked(options: argparse.Namespace, path: Path) -> tuple[Track, float]:
    tracker, start = LiveTracker(), time.process_time()
    track = record(tracker, path, options.work / "live", overlay=False)[0]
    return track, 1000 * (time.process_time() - start) / len(track.frames)


def mediapipe_mesh(options: argparse.Namespace, path: Path) -> tuple[np.ndarray, float]:
    script, result = options.work / "mediapipe_mesh.py", options.work / f"{path.stem}_mediapipe.json"
    script.write_text(_MEDIAPIPE, encoding="utf-8")
    if not result.exists():
        command = [str(options.mediapipe), str(script), str(path), str(result)]
        subprocess.run(command, check=True, capture_output=True)
    found = json.loads(result.read_text(encoding="utf-8"))
    points = np.array(found["points"])
    return np.stack([landmarks68_from_mesh(p) for p in points]), 1000 * found["seconds"] / len(points)


def spread_mm(identities: np.ndarray) -> float:
    """Mean distance of the vertices from their mean over faces, millimetres."""
    model = load_model()
    skin = (1 - model.masks.neck) * (1 - model.masks.eyes) > 0.5
    offsets = torch.tensordot(torch.from_numpy(identities).float(), model.identity_basis[:, skin], dims=1)
    return float(1000 * (offsets - offsets.mean(0)).norm(dim=-1).mean())


def portraits_text(track: Track, true: np.ndarray) -> str:
    """Error of the shape by the number of portraits: mean over all choices of so many of them."""
    model = load_model()
    skin = (1 - model.masks.neck) * (1 - model.masks.eyes) > 0.5

    def error_mm(identity: np.ndarray) -> float:
        offset = torch.tensordot(torch.from_numpy(identity - true).float(), model.identity_basis[:, skin], dims=1)
        return float(1000 * offset.norm(dim=-1).mean())

    identities = track.portrait_identities
    means = [
        np.mean(
            [error_mm(identities[list(some)].mean(0)) for some in itertools.combinations(range(len(identities)), k)]
        )
        for k in range(1, len(identities) + 1)
    ]
    return (
        f"error of the shape from 1 to {len(means)} portraits: {', '.join(f'{mean:.2f}' for mean in means)} mm; with "
        f"their weights {error_mm(track.identity):.2f} mm; of the mean face {error_mm(0 * true):.2f} mm"
    )


def compare(options: argparse.Namespace, path: Path, truth: Truth, *, all_methods: bool = True) -> tuple[float, Track]:
    """The methods on one clip; returns the jitter of tracking over that of the photo pipeline frame by frame."""
    (track, *_), ms = tracked(options, path, mode="net")
    landmarks, expressions, identities, net_ms = frame_by_frame(path, track.focal_px)
    alone = report("photo pipeline, mode net, per frame", landmarks, truth, ms=net_ms, expression=expressions)
    report("its detected landmarks when followed", track.detected68, truth, ms=float("nan"))
    own = report("**track, mode net**", track.landmarks68, truth, ms=ms, expression=track.expression)
    if not all_methods:
        return own / alone, track
    (fit, *_), fit_ms = tracked(options, path, mode="fit")
    report("track, mode fit", fit.landmarks68, truth, ms=fit_ms, expression=fit.expression)
    live, live_ms = live_tracked(options, path)
    report("track, live", live.landmarks68, truth, ms=live_ms, expression=live.expression)
    if options.mediapipe:
        mesh, mesh_ms = mediapipe_mesh(options, path)
        report("MediaPipe 0.10.21, face mesh", mesh, truth, ms=mesh_ms)
    print(
        f"\nidentity: frames by themselves differ by {spread_mm(identities):.2f} mm from their mean, the portraits of "
        f"the track by {spread_mm(track.portrait_identities):.2f} mm; the track has one"
    )
    write_person(track, load_model(), options.work / f"out_{path.stem}", ("npz", "csv", "glb"))
    write_pictures(path, [track], load_model(), options.work / f"out_{path.stem}", ("sheet", "overlay"))
    return own / alone, track


# Sections


def header(*, curves: bool) -> None:
    columns = ["method", "jitter px", "lag frames", "NME51", "CPU per frame", *(CURVES if curves else ())]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)


def talk(options: argparse.Namespace) -> None:
    path, truth = talk_clip(options)
    header(curves=True)
    ratio, track = compare(options, path, truth)
    print(f"\njitter over that of frames by themselves: {ratio:.2f}")
    print(portraits_text(track, Reconstruction.load(options.work / "portrait_a").identity))
    assert truth.expression is not None
    true = gaze_angles(load_model(), torch.from_numpy(truth.expression)).numpy()
    open_eyes = truth.expression[:, load_model().expression_names.index("eyeBlinkLeft")] < 0.3
    found, true = (np.degrees(angles)[open_eyes] for angles in (track.gaze, true))
    for way, axis in (("sideways", 0), ("up and down", 1)):
        error = np.sqrt(np.mean((found - true)[..., axis] ** 2))
        least, largest = true[..., axis].min(), true[..., axis].max()
        text = f"gaze {way}: error {error:.1f}°, true angles from {least:.0f}° to {largest:.0f}°"
        if np.ptp(true[..., axis]) > 1:
            x, y = true[..., axis].ravel(), found[..., axis].ravel()
            text += f", correlation {np.corrcoef(x, y)[0, 1]:.2f}, slope {np.polyfit(x, y, 1)[0]:.2f}"
        print(text)


def real(options: argparse.Namespace) -> None:
    ratios = []
    for name in PORTRAITS:
        path, truth = real_clip(options, name, options.data / "demo" / f"portrait_{name}.jpg")
        print(f"\nportrait {name}\n")
        header(curves=False)
        ratios.append(compare(options, path, truth)[0])
    print(f"\njitter over that of frames by themselves, per portrait: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def scans(options: argparse.Namespace) -> None:
    """Grey studio photos that are shifted, zoomed, turned, and lit by lamps of changing brightness."""
    for photo_path in sorted((options.data / "scans_dev" / "photos").glob("*.jpg"))[:: 57 // SCANS][:SCANS]:
        path, truth = real_clip(options, f"scan_{photo_path.stem}", photo_path, flicker=FLICKER)
        print(f"\nphoto {photo_path.stem}\n")
        header(curves=False)
        print(f"\nratio of jitter: {compare(options, path, truth, all_methods=False)[0]:.2f}")


def persons(tracks: list[Track], truths: list[list[clips.Truth]]) -> None:
    """Which drawn head each track follows, and for how many frames."""
    for track in tracks:
        counts: dict[int, int] = {}
        for frame, landmarks in zip(track.frames, track.landmarks68, strict=True):
            heads = truths[frame]
            away = [np.linalg.norm(landmarks - head.landmarks68_px, axis=-1).mean() for head in heads]
            best = int(np.argmin(away))
            label = best if away[best] < 15 else -1
            counts[label] = counts.get(label, 0) + 1
        text = ", ".join(f"{'astray' if k < 0 else f'head {k}'} in {count}" for k, count in sorted(counts.items()))
        print(f"- {track}: {text}; {int((~track.detected).sum())} interpolated, {len(set(track.segments))} segments")


def cross(options: argparse.Namespace) -> None:
    made = [head(options, "a"), head(options, "b")]
    path, truths = drawn(options, "cross", lambda: clips.drawn_clip(made, clips.crossing, seconds=3, shake_px=0.6))
    tracks, ms = tracked(options, path, mode=options.mode)
    persons(tracks, truths)
    print(f"\n{ms:.0f} ms of processor time per frame with two faces")


def board(options: argparse.Namespace) -> None:
    made = head(options, "c")

    def frames() -> Iterator[clips.DrawnFrame]:
        return clips.occluded(clips.drawn_clip([made], lambda t: [clips.talking(t + 1.8)], seconds=3, shake_px=1.0))

    path, truths = drawn(options, "board", frames)
    tracks, _ = tracked(options, path, mode=options.mode)
    persons(tracks, truths)
    hidden = ~tracks[0].detected
    true = np.array([truths[k][0].landmarks68_px for k in tracks[0].frames])
    error = np.linalg.norm(tracks[0].landmarks68 - true, axis=-1)[:, 17:].mean(1)
    print(
        f"\nmean error of the landmarks: {error[~hidden].mean():.1f} px seen, {error[hidden].mean():.1f} px behind it"
    )


def cuts(options: argparse.Namespace) -> None:
    a, b = head(options, "a"), head(options, "b")

    def frames() -> Iterator[clips.DrawnFrame]:
        for number, (made, start) in enumerate(((a, 2.0), (b, 3.0), (a, 4.0))):
            yield from clips.drawn_clip([made], lambda t, s=start: [clips.talking(t + s)], seconds=1.2, seed=number)

    path, truths = drawn(options, "cuts", frames)
    tracks, _ = tracked(options, path, mode=options.mode)
    persons(tracks, truths)


def imagined(options: argparse.Namespace) -> None:
    """How far landmarks move with the window: those of faces, and those of what is taken for a face."""
    detector_module.IMAGINED_SCATTER = np.inf  # to see those that the detector drops as well
    detector = FaceDetector()
    portraits = [read_photo(path).pixels for path in sorted((options.data / "demo").glob("portrait_?.jpg"))]
    pictures = {
        "portraits": portraits,
        "blurred portraits": [np.array(Image.fromarray(p).filter(ImageFilter.GaussianBlur(8))) for p in portraits],
        "photos of faces": [
            read_photo(path).pixels for path in sorted((options.data / "photos_68").rglob("*.jpg"))[::17]
        ],
        "blurred rooms": [clips.background(np.random.default_rng(seed)) for seed in range(60)],
        "photos of coins, coffee and cells": [
            _coloured(getattr(skimage.data, n)()) for n in ("coins", "coffee", "cell")
        ],
    }
    for name, photos in pictures.items():
        found = [(detector.scatter(p, [f.landmarks468_px])[0], f.score) for p in photos for f in detector.detect(p)]
        scatter, score = np.array(found).T
        dropped = int(((scatter > IMAGINED_SCATTER) & (score < detector_module.DOUBTFUL_SCORE)).sum())
        print(
            f"- {len(found)} faces in {len(photos)} {name}: {scatter.min():.3f} to {scatter.max():.3f}; {dropped} are "
            f"dropped in photos, {int((scatter > LARGEST_SCATTER).sum())} are not followed in videos",
            flush=True,
        )


def _coloured(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2))


def speed(options: argparse.Namespace) -> None:
    """Frames per second at 720p by the clock, everything included except the files; model and networks are loaded."""
    path = loop_clip(options)
    torch.set_num_threads(options.threads)
    for mode in ("net", "fit"):
        tracker = Tracker(mode=mode)
        with tempfile.TemporaryDirectory() as folder:
            wall, processor = time.perf_counter(), time.process_time()
            list(tracker(path, Path(folder)))
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(
            f"- mode {mode}, {options.threads} threads: {options.frames / wall:.1f} frames per second, "
            f"{1000 * processor / options.frames:.0f} ms of processor time per frame",
            flush=True,
        )
    torch.set_num_threads(1)


def memory(options: argparse.Namespace) -> None:
    """Memory of a process that tracks one clip in a loop of many frames."""
    long = loop_clip(options)
    start, marks = time.process_time(), []

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "following faces" and done % (options.frames // 4) == 0:
            marks.append((done, resident_mb()))

    (track, *_) = Tracker(mode=options.mode)(long, options.work / "run_loop", progress=progress)
    print(", ".join(f"{done} frames: {size:.0f} MB" for done, size in marks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ms = 1000 * (time.process_time() - start) / options.frames
    print(f"at the end {resident_mb():.0f} MB, at most {peak:.0f} MB; {ms:.0f} ms per frame; {track}")


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
