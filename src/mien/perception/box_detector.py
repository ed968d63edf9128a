"""Finds face boxes in photos of any size and orientation with BlazeFace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mien.perception.blazeface import BlazeFace, FullRangeBlazeFace, ShortRangeBlazeFace
from mien.perception.face_detection import FaceBox
from mien.perception.windows import PhotoPyramid, normalise_exposure, window_matrix
from mien.typing import Float

SCORE_THRESHOLD = 0.5
# If the best score is lower than this, the other three orientations are searched as well.
SURE_SCORE = 0.75
# Two boxes are merged if their intersection over union exceeds this …
MERGE_OVERLAP = 0.3
# … or if their intersection exceeds this share of the smaller box.
MERGE_INSIDE = 0.7
# The full-range network finds almost every face that spans this many of its 192 pixels.
FACE_PX_IN_WINDOW = 20.0
SMALLEST_FACE_PX = 30.0
# Boxes smaller than this share of SMALLEST_FACE_PX are more often ornaments than faces.
SMALLEST_SHARE = 0.6
# In very large photos the smallest face is this share of the longer side, which limits the number of tiles.
SMALLEST_IN_PHOTO = 0.01
# If a face is this large (share of the photo's shorter side), the finest tiles are not searched.
LARGE_FACE = 0.12
# If a face is this large, the photo is a portrait: the full-range network sees the whole photo once, and no tiles.
PORTRAIT_FACE = 0.3
# Each face is checked again in four orientations, in a window of this multiple of its size; another orientation must
# exceed the score of the first by the margin.
UPRIGHT_VIEW = 2.0
UPRIGHT_MARGIN = 0.1
TILE_OVERLAP = 0.2
BATCH = 16


@dataclass(frozen=True)
class _Window:
    """A square to search: centre and side in photo pixels, rotation in radians."""

    centre: tuple[float, float]
    side: float
    angle: float
    tile: bool
    """Whether it is a part of the photo, whose edges may cut faces."""

    def cuts(self, box: np.ndarray, photo: PhotoPyramid) -> bool:
        """Whether an edge of the tile, but not of the photo, cuts a face: another tile or level shows it whole."""
        if not self.tile:
            return False
        x, y = self.centre
        margin = 0.05 * (box[2] - box[0])
        low, high = (max(x - self.side / 2, 0), max(y - self.side / 2, 0)), (x + self.side / 2, y + self.side / 2)
        extent = photo.width, photo.height
        cut_low = any(box[k] < low[k] - margin and low[k] > 1 for k in (0, 1))
        return cut_low or any(box[2 + k] > high[k] + margin and high[k] < extent[k] - 1 for k in (0, 1))


@dataclass(frozen=True)
class _Candidate:
    """One detection in photo pixels, and the rotation of its window."""

    score: float
    box: np.ndarray
    keypoints: np.ndarray
    angle: float


def _tiles(width: int, height: int, side: float, angle: float) -> list[_Window]:
    """Cover the photo with overlapping squares."""
    steps = []
    for extent in (width, height):
        count = max(1, int(np.ceil((extent - side) / (side * (1 - TILE_OVERLAP)))) + 1)
        first, last = (extent / 2, extent / 2) if extent <= side else (side / 2, extent - side / 2)
        steps.append(np.linspace(first, last, count if extent > side else 1))
    return [_Window((float(x), float(y)), side, angle, True) for y in steps[1] for x in steps[0]]


class BoxDetector:
    """Runs BlazeFace on a pyramid of windows, in all four orientations if the upright one gives no clear face."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.near = ShortRangeBlazeFace.from_assets().to(device)
        self.far = FullRangeBlazeFace.from_assets().to(device)

    def detect(self, photo: PhotoPyramid) -> list[FaceBox]:
        """Find the faces of a photo, sorted by size times score, largest first."""
        candidates = self._search(photo, 0.0)
        if max((c.score for c in candidates), default=0.0) < SURE_SCORE:
            for quarter in (1, 3, 2):
                candidates += self._search(photo, quarter * np.pi / 2, finest_tiles=False)
        faces = [face for face in _merge(candidates) if face.size_px > SMALLEST_SHARE * SMALLEST_FACE_PX]
        faces = [self._turn_upright(photo, face) for face in faces]
        return sorted(faces, key=lambda face: -face.size_px * face.score)

    def _search(self, photo: PhotoPyramid, angle: float, *, finest_tiles: bool = True) -> list[_Candidate]:
        """Search windows larger than the photo first, then smaller and smaller tiles.

        `finest_tiles` is off for rotated searches: small faces are rarely rotated.
        """
        width, height = photo.width, photo.height
        longer, shorter = max(width, height), min(width, height)
        whole = [_Window((width / 2, height / 2), longer * share, angle, False) for share in (1.0, 1.5, 2.2)]
        found = self._run(self.near, photo, whole) + self._run(self.far, photo, whole[:1])
        if _largest_sure(found) > PORTRAIT_FACE * shorter:
            return found
        found += self._run(self.far, photo, whole[1:2])
        side = longer * 0.6
        smallest = max(SMALLEST_FACE_PX, SMALLEST_IN_PHOTO * longer)
        finest = smallest * self.far.size / FACE_PX_IN_WINDOW
        while True:
            found += self._run(self.far, photo, _tiles(width, height, side, angle))
            if side <= finest or not finest_tiles or _largest_sure(found) > LARGE_FACE * shorter:
                break
            side = max(side * 0.55, 0.9 * finest)
        return found

    def _turn_upright(self, photo: PhotoPyramid, face: FaceBox) -> FaceBox:
        """Check one face in four orientations, because an upside-down face may be detected as an upright one."""
        right, left = face.keypoints_px[:2]
        roll = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
        x, y = ((face.box_px[:2] + face.box_px[2:]) / 2).tolist()
        angles = [roll + quarter * np.pi / 2 for quarter in range(4)]
        windows = [_Window((x, y), UPRIGHT_VIEW * face.size_px, angle, False) for angle in angles]
        candidates = _showing(face, self._run(self.near, photo, windows[:1]))
        # Scores end at 1, so with a high first score no other orientation can win by the margin.
        if max((c.score for c in candidates), default=0.0) + UPRIGHT_MARGIN < 1:
            candidates += _showing(face, self._run(self.near, photo, windows[1:]))
        best = {angle: max((c.score for c in candidates if c.angle == angle), default=0.0) for angle in angles}
        chosen = max(angles, key=lambda angle: best[angle])
        if best[chosen] < max(best[roll] + UPRIGHT_MARGIN, face.score) and (chosen != roll or best[roll] < face.score):
            return face
        (found, *_) = _merge([c for c in candidates if c.angle == chosen])
        return found

    def _run(self, network: BlazeFace, photo: PhotoPyramid, windows: list[_Window]) -> list[_Candidate]:
        """Run one network on windows and convert its detections to photo pixels."""
        found = []
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            matrices = [window_matrix(np.array(w.centre), w.side, network.size, angle=w.angle) for w in batch]
            pictures, inside = photo.sample_many(matrices, network.size)
            with torch.inference_mode():
                regressions, logits = network(normalise_exposure(pictures, inside))
                scores = logits.sigmoid()
                windows_of, anchors = torch.nonzero(scores >= SCORE_THRESHOLD, as_tuple=True)
                boxes, keypoints = network.decode(regressions[windows_of, anchors], network.anchors[anchors])
                found += _to_photo(
                    scores[windows_of, anchors].tolist(),
                    boxes.cpu().double().numpy(),
                    keypoints.cpu().double().numpy(),
                    windows=[batch[k] for k in windows_of.tolist()],
                    matrices=np.stack(matrices)[windows_of.cpu().numpy()],
                    photo=photo,
                )
        return found


def _to_photo(
    scores: list[float],
    boxes: Float[np.ndarray, "N 4"],
    keypoints: Float[np.ndarray, "N 6 2"],
    *,
    windows: list[_Window],
    matrices: Float[np.ndarray, "N 2 3"],
    photo: PhotoPyramid,
) -> list[_Candidate]:
    """Detections in photo pixels; each has its window, and the matrix from there."""
    turns, origins = matrices[:, :, :2].transpose(0, 2, 1), matrices[:, :, 2]
    centres = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2 @ turns)[:, 0] + origins
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2 * np.linalg.norm(matrices[:, :, 0], axis=1)[:, None]
    own = np.concatenate([centres - half, centres + half], 1)
    points = keypoints @ turns + origins[:, None]
    return [
        _Candidate(score, own[k], points[k], window.angle)
        for k, (score, window) in enumerate(zip(scores, windows, strict=True))
        if not window.cuts(own[k], photo)
    ]


def _showing(face: FaceBox, candidates: list[_Candidate]) -> list[_Candidate]:
    """The candidates that match the box of a face in position and size."""
    if not candidates:
        return []
    near = _overlaps(face.box_px, np.stack([c.box for c in candidates]))
    return [c for c, own in zip(candidates, near, strict=True) if own and _alike(c.box, face.box_px)]


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which of the other boxes show the same face."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    return (common > MERGE_OVERLAP * (area + areas - common)) | (common > MERGE_INSIDE * np.minimum(area, areas))


def _largest_sure(candidates: list[_Candidate]) -> float:
    """Side of the largest box with a score above SURE_SCORE, photo pixels; 0 if there is none."""
    return max((float((c.box[2:] - c.box[:2]).max()) for c in candidates if c.score > SURE_SCORE), default=0.0)


def _alike(box: np.ndarray, other: np.ndarray) -> bool:
    """Whether two square boxes have similar sizes."""
    return bool(0.6 < (box[2] - box[0]) / max(other[2] - other[0], 1e-6) < 1.6)


def _merge(candidates: list[_Candidate]) -> list[FaceBox]:
    """Merge the candidates of each face: boxes and keypoints averaged by score within the best orientation."""
    order = sorted(candidates, key=lambda c: -c.score)
    faces = []
    while order:
        best = order[0]
        same = _overlaps(best.box, np.stack([c.box for c in order]))
        group = [c for c, joined in zip(order, same, strict=True) if joined and c.angle == best.angle]
        # Much smaller boxes inside a large one (a nose, an eye) must not shift it.
        group = [c for c in group if _alike(c.box, best.box)]
        weights = np.array([c.score for c in group]) / sum(c.score for c in group)
        box = np.einsum("n,nk->k", weights, np.stack([c.box for c in group]))
        points = np.einsum("n,nkd->kd", weights, np.stack([c.keypoints for c in group]))
        faces.append(FaceBox(best.score, box, points))
        order = [c for c, joined in zip(order, same, strict=True) if not joined]
    return faces
