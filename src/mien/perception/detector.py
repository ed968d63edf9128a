"""From a photo to observed faces: detection, then the mesh in a crop that is refined until it stays in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mien.errors import ImageError
from mien.morphable.landmark_tables import MEDIAPIPE_OUTER_EYE_CORNERS
from mien.perception.box_detector import SURE_SCORE, BoxDetector
from mien.perception.crops import sample_affine
from mien.perception.face_detection import FaceBox, FaceDetection
from mien.perception.facemesh import MESH_SIZE, FaceMesh
from mien.perception.windows import PhotoPyramid, normalise_exposure, window_matrix
from mien.typing import Float, Tensor

# The mesh network was trained on crops 1.5 times the box of the face's points.
CROP_SCALE = 1.5
# The crop is made anew from the mesh at most twice: after a bad first roll once is not enough.
PASSES = 3
# A crop that would move, grow or turn by less than this (shares of its side, radians) is not looked at again. On 158
# photos with hand-placed points NME51 is 3.72 % so, in 2.2 passes, and 3.74 % in three.
SETTLED = 0.02
# Below this belief of the mesh network a detection is dropped, and a hesitant detection below the second.
CONFIDENCE_THRESHOLD = 0.5
HESITANT_CONFIDENCE = 0.95
# What the network's points lack in the crop (pixels of 192). x: half of what a face and its mirror image disagree
# by; y: the mean at the eye corners against hand-placed templates; both on CC-BY portraits (PROVENANCE.md).
MESH_OFFSET = np.array([0.2, 0.85])
BATCH = 16


class FaceDetector:
    """Detects and observes the faces of a photo; loads its three networks once.

    Photos are uint8 (H,W,3) sRGB, upright. Results are in their pixels, with (0, 0) the top-left corner. No face
    is no error: the lists are then empty. Not differentiable. Raises AssetError if a weight file is damaged.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.detector = BoxDetector(self.device)
        self.mesh = FaceMesh.from_assets().to(self.device)

    def detect_boxes(self, image: np.ndarray) -> list[FaceBox]:
        """Find faces from 30 pixels up to larger than the photo, turned any way; best (size × score) first."""
        return self.detector.detect(self._pyramid(image))

    def detect(
        self, image: np.ndarray, faces: Sequence[FaceBox] | None = None, *, max_faces: int | None = None
    ) -> list[FaceDetection]:
        """Place the mesh on every face; `faces` are searched for if not given.

        Drops detections that the mesh network does not believe in, and a second mesh on one face.
        """
        photo = self._pyramid(image)
        found = self.detector.detect(photo) if faces is None else list(faces)
        observed: list[FaceDetection] = []
        for start in range(0, len(found), BATCH):
            for face in self._observe_batch(photo, found[start : start + BATCH]):
                if _believed(face) and not any(_same(face, other) for other in observed):
                    observed.append(face)
            if max_faces is not None and len(observed) >= max_faces:
                break
        return observed[:max_faces]

    def _pyramid(self, image: np.ndarray) -> PhotoPyramid:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(
                f"a photo must be an array of uint8 and shape (height, width, 3), got {image.dtype} {image.shape}; "
                "read it with mien.io.photo.read_photo"
            )
        return PhotoPyramid(image, device=self.device)

    def _observe_batch(self, photo: PhotoPyramid, faces: list[FaceBox]) -> list[FaceDetection]:
        views = [_View.of(face) for face in faces]
        observed: dict[int, FaceDetection] = {}
        moving = list(range(len(faces)))
        for _ in range(PASSES):
            matrices = [views[k].matrix() for k in moving]
            pictures, inside = photo.sample_many(matrices, MESH_SIZE)
            with torch.inference_mode():
                points, rings, logits = self.mesh(normalise_exposure(pictures, inside))
            believed = logits.sigmoid().tolist()
            still_moving = []
            for row, k in enumerate(moving):
                mesh = _place(points[row].cpu().double().numpy(), matrices[row])
                iris = _place(rings[row].cpu().double().numpy(), matrices[row])
                face, view = faces[k], _View.around(mesh)
                observed[k] = FaceDetection(face.score, face.box_px, face.keypoints_px, mesh, iris, believed[row])
                if view.departs(views[k]):
                    still_moving.append(k)
                views[k] = view
            moving = still_moving
            if not moving:
                break
        return [observed[k] for k in range(len(faces))]


def detect_landmarks468(
    network: FaceMesh, pictures: Float[Tensor, "B 3 H W"], *, near_px: Float[Tensor, "B 468 2"]
) -> Float[Tensor, "B 468 2"]:
    """Where the mesh network sees the points of one face in each picture (RGB in [0, 1]), near a first guess.

    The last look of `Perception.observe`, for pictures that need no detection. Faces are looked at one by one, so that
    the rest of a batch changes nothing in the last digit. On the CPU; not differentiable.
    """
    found = []
    for picture, guess in zip(pictures, near_px, strict=True):
        matrix = _View.around(guess.double().numpy()).matrix()
        whole = torch.cat([picture, torch.ones_like(picture[:1])])[None]
        shown = torch.from_numpy(matrix)[None].to(picture.dtype)
        window = sample_affine(whole, shown, size=(MESH_SIZE, MESH_SIZE), padding="zeros")
        with torch.inference_mode():
            mesh = network(normalise_exposure(window[:, :3], (window[:, 3] > 0.5).float()))[0][0].double().numpy()
        found.append(torch.from_numpy(_place(mesh, matrix)[:, :2]))
    return torch.stack(found).to(near_px.dtype)


@dataclass(frozen=True)
class _View:
    """The turned square in which the mesh network looks at a face, photo pixels and radians."""

    centre: np.ndarray
    side: float
    angle: float

    @classmethod
    def of(cls, face: FaceBox) -> _View:
        angle = _roll(face.keypoints_px[0], face.keypoints_px[1])
        return cls((face.box_px[:2] + face.box_px[2:]) / 2, face.size_px * CROP_SCALE, angle)

    @classmethod
    def around(cls, landmarks468_px: np.ndarray) -> _View:
        angle = _roll(*landmarks468_px[list(MEDIAPIPE_OUTER_EYE_CORNERS)])
        centre, side = _turned_box(landmarks468_px[:, :2], angle)
        return cls(centre, side * CROP_SCALE, angle)

    def matrix(self) -> np.ndarray:
        """From pixels of the network's picture to photo pixels."""
        return window_matrix(self.centre, self.side, MESH_SIZE, angle=self.angle)

    def departs(self, other: _View) -> bool:
        """Whether it lies far enough from another to be worth a look."""
        moved = float(np.linalg.norm(self.centre - other.centre)) / other.side
        return max(moved, abs(float(np.log(self.side / other.side))), abs(self.angle - other.angle)) >= SETTLED


def _believed(face: FaceDetection) -> bool:
    needed = CONFIDENCE_THRESHOLD if face.score >= SURE_SCORE else HESITANT_CONFIDENCE
    return face.confidence >= needed


def _roll(right: np.ndarray, left: np.ndarray) -> float:
    return float(np.arctan2(left[1] - right[1], left[0] - right[0]))


def _place(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bring points x, y (, z) from a window to the photo; z takes the scale only."""
    xy = (points[..., :2] + MESH_OFFSET) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([xy, points[..., 2:] * np.linalg.norm(matrix[:, 0])], -1)


def _turned_box(points: np.ndarray, angle: float) -> tuple[np.ndarray, float]:
    """Return centre and longer side of the box of the points in a frame turned by `angle`."""
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = points @ axes
    low, high = turned.min(0), turned.max(0)
    return axes @ ((low + high) / 2), float((high - low).max())


def _same(one: FaceDetection, other: FaceDetection) -> bool:
    """Tell whether two meshes lie on one face: their points are nearer than a fifth of its size."""
    distance = np.linalg.norm(one.landmarks468_px[:, :2] - other.landmarks468_px[:, :2], axis=1).mean()
    return bool(distance < 0.2 * np.ptp(other.landmarks468_px[:, :2], axis=0).max())
