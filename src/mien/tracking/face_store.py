"""What was found in the frames of a video, on disk: memory stays the same for videos of any length.

The frames are stored in chunks. Each chunk also has the state of the follower after its last frame, so that a run that
was killed goes on there, with the same result.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.errors import FormatError
from mien.io.files import write_text, write_whole, writing
from mien.io.npz import NpzReader, write_npz
from mien.tracking.following import FollowedFrame, FollowerState, Tracklet
from mien.typing import Bool, Float, Int

CHUNK = 100
"""Frames per file; at most so many are computed again after a kill."""
_RUN_FILE = "run.json"
_TRACKLET_FIELDS = ("number", "first_frame", "parent", "crossing", "features", "lost_frame")


@dataclass(frozen=True, eq=False)
class TrackedFaces:
    """Faces in frames, as arrays of N rows in the order of the frames."""

    frame: Int[np.ndarray, "N"]
    tracklet: Int[np.ndarray, "N"]
    landmarks468_px: Float[np.ndarray, "N 468 3"]
    irises_px: Float[np.ndarray, "N 2 5 2"]
    confidence: Float[np.ndarray, "N"]
    sharpness: Float[np.ndarray, "N"]
    expression: Float[np.ndarray, "N E"]
    """The encoder's predictions; E = 0 without an encoder."""

    def __getitem__(self, rows: slice | np.ndarray) -> TrackedFaces:
        """Some of the rows."""
        return TrackedFaces(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @classmethod
    def join(cls, parts: Iterable[TrackedFaces]) -> TrackedFaces:
        """The rows of all parts."""
        columns = zip(*([getattr(part, f.name) for f in dataclasses.fields(cls)] for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True, eq=False)
class Timeline:
    """What is known about all frames and tracklets; 20 bytes per frame."""

    times_s: Float[np.ndarray, "T"]
    is_cut: Bool[np.ndarray, "T"]
    parents: Int[np.ndarray, "M 2"]
    feature_tracklets: Int[np.ndarray, "K"]
    features: Float[np.ndarray, "K 128"]


class FaceStore:
    """The chunks of one run in a folder.

    Args:
        folder: The folder, which is made.
        run: What the faces found depend on: video and settings. Chunks of another run are removed.
    """

    def __init__(self, folder: Path, run: dict[str, object]) -> None:
        self.folder = folder
        self._waiting: list[FollowedFrame] = []
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / _RUN_FILE
            content = json.dumps(run, sort_keys=True)
            if not file.exists() or file.read_text(encoding="utf-8") != content:
                for old in folder.glob("*.npz"):
                    old.unlink()
                write_text(file, content)
        self.frames_done, self.is_finished = 0, False
        self._count_chunks()

    def _count_chunks(self) -> None:
        while (path := self._path(self.frames_done // CHUNK)).exists():
            chunk = NpzReader(path)
            count = len(chunk.array("times_s"))
            self.frames_done += count
            if bool(chunk.array("is_last")):
                self.is_finished = True
                return
            if count != CHUNK:
                raise FormatError(f"{path} has {count} frames; expected {CHUNK}. Remove {self.folder} and start again.")

    def state(self) -> FollowerState:
        """The follower's state after `frames_done` frames."""
        if self.frames_done == 0:
            return FollowerState()
        chunk = NpzReader(self._path((self.frames_done - 1) // CHUNK))
        table, landmarks = chunk.array("state_tracklets"), chunk.array("state_landmarks")
        tracklets = []
        for row, (newest, steady) in zip(table.tolist(), landmarks, strict=True):
            number, first, parent, crossing, features, lost = row
            tracklets.append(Tracklet(number, newest, steady, first, parent, bool(crossing), features, lost))
        next_number, searched = chunk.array("state_numbers").tolist()
        return FollowerState(tuple(tracklets), next_number, chunk.array("state_cells"), searched)

    def add(self, frame: FollowedFrame, state: FollowerState) -> None:
        """Add the next frame and the state after it."""
        self._waiting.append(frame)
        if len(self._waiting) == CHUNK:
            self._write(state, is_last=False)

    def finish(self, state: FollowerState) -> None:
        """The video has ended."""
        self._write(state, is_last=True)
        self.is_finished = True

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk{number:06d}.npz"

    def _write(self, state: FollowerState, *, is_last: bool) -> None:
        seen = [o for frame in self._waiting for o in frame.tracked_faces]
        with_feature = [o for o in seen if o.feature is not None]
        table = [[getattr(t, name) for name in _TRACKLET_FIELDS] for t in state.tracklets]
        landmarks = [(t.landmarks468_px, t.steady_px) for t in state.tracklets]
        arrays = {
            "times_s": np.array([frame.time_s for frame in self._waiting], np.float64),
            "is_cut": np.array([frame.is_cut for frame in self._waiting], bool),
            "parents": np.array([p for f in self._waiting for p in f.parents], np.int64).reshape(-1, 2),
            "frame": np.array([o.frame for o in seen], np.int64),
            "tracklet": np.array([o.tracklet for o in seen], np.int64),
            "landmarks468_px": np.array([o.landmarks468_px for o in seen], np.float32).reshape(-1, 468, 3),
            "irises_px": np.array([o.irises_px for o in seen], np.float32).reshape(-1, 2, 5, 2),
            "confidence": np.array([o.confidence for o in seen], np.float32),
            "sharpness": np.array([o.sharpness for o in seen], np.float32),
            "expression": _stacked([o.expression for o in seen]),
            "feature_tracklets": np.array([o.tracklet for o in with_feature], np.int64),
            "features": np.array([o.feature for o in with_feature], np.float32).reshape(-1, 128),
            "state_tracklets": np.array(table, np.int64).reshape(-1, len(_TRACKLET_FIELDS)),
            "state_landmarks": np.array(landmarks, np.float64).reshape(-1, 2, 468, 3),
            "state_numbers": np.array([state.next_number, state.searched_frame], np.int64),
            "state_cells": state.cells,
            "is_last": np.array(is_last),
        }
        path = self._path(self.frames_done // CHUNK)
        with writing(path):
            write_whole(path, lambda partial: write_npz(arrays, partial))
        self.frames_done += len(self._waiting)
        self._waiting = []

    def chunks(self) -> Iterator[NpzReader]:
        """The chunks in order."""
        for number in range(-(-self.frames_done // CHUNK)):
            yield NpzReader(self._path(number))

    def timeline(self) -> Timeline:
        """Times, cuts and tracklets of the whole video."""
        names = [field.name for field in dataclasses.fields(Timeline)]
        columns = zip(*([chunk.array(name) for name in names] for chunk in self.chunks()), strict=True)
        return Timeline(*(np.concatenate(column) for column in columns))

    def rows(self) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Frame and tracklet of each face."""
        parts = [(chunk.array("frame"), chunk.array("tracklet")) for chunk in self.chunks()]
        frames, tracklets = zip(*parts, strict=True)
        return np.concatenate(frames), np.concatenate(tracklets)

    def between(self, first: int, end: int, tracklets: Iterable[int]) -> TrackedFaces:
        """Faces of some tracklets in the frames from `first` to before `end`."""
        wanted, parts = np.array(sorted(tracklets)), []
        for number in range(first // CHUNK, -(-min(end, self.frames_done) // CHUNK)):
            chunk = NpzReader(self._path(number))
            part = TrackedFaces(*(chunk.array(field.name) for field in dataclasses.fields(TrackedFaces)))
            rows = (part.frame >= first) & (part.frame < end) & np.isin(part.tracklet, wanted)
            parts.append(part[rows])
        return TrackedFaces.join(_same_width(parts))


def _stacked(expressions: list[np.ndarray | None]) -> Float[np.ndarray, "N E"]:
    known = [expression for expression in expressions if expression is not None]
    return np.array(known, np.float32) if known else np.zeros((len(expressions), 0), np.float32)


def _same_width(parts: list[TrackedFaces]) -> list[TrackedFaces]:
    """Parts without rows do not know how many expressions there are."""
    width = max(part.expression.shape[1] for part in parts)
    return [
        part if len(part.frame) else dataclasses.replace(part, expression=np.zeros((0, width), np.float32))
        for part in parts
    ]
