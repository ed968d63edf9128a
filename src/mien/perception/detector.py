"""Detects the faces of a photo: boxes first, then the mesh in a crop that is refined until it no longer moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from mien.errors import ImageError
from mien.morphable.landmark_tables import (
    MEDIAPIPE_MOUTH_CORNERS,
    MEDIAPIPE_NOSE_TIP,
    MEDIAPIPE_OUTER_EYE_CORNERS,
    MEDIAPIPE_SIDES,
)
from mien.perception.box_detector import SURE_SCORE, BoxDetector
from mien.perception.crops import Padding, sample_affine
from mien.perception.face_detection import FaceBox, FaceDetection
from mien.perception.facemesh import MESH_SIZE, FaceMesh
from mien.perception.occluders import OccluderMap
from mien.perception.windows import PhotoPyramid, normalise_exposure, window_matrix
from mien.typing import Float, Tensor

# The mesh network was trained on crops 1.5 times the box of the face's points.
CROP_SCALE = 1.5
# The crop is computed again from the mesh at most twice: once is not enough after a wrong first roll angle.
PASSES = 3
# A crop that would move, scale or turn by less than this (shares of its side, radians) is final. On 158 photos with
# manual landmarks this gives NME51 3.72 % in 2.2 passes; three passes for every face give 3.74 %.
SETTLED = 0.02
# Smallest confidence of the mesh network for a face; the second for faces whose box score is below SURE_SCORE.
CONFIDENCE_THRESHOLD = 0.5
HESITANT_CONFIDENCE = 0.95
# Systematic error of the network's points, added to them (pixels of the 192-pixel crop). x: half the disagreement
# between a face and its mirror image; y: the mean at the eye corners against manual templates; both on CC-BY portraits
# (PROVENANCE.md).
MESH_OFFSET = np.array([0.2, 0.85])
# Outside the photo, its last pixels continue and fade into its blurred colours; radii of the two box filters, pixels of
# the 192-pixel crop. Sharp streaks squeeze the mesh: six portraits that end at the face (1.0 face widths wide and
# high) give points that are off by 1.7 % of its width with streaks, and by 1.3 % with these.
FADE_RADIUS, BLUR_RADIUS = 10, 30
# Where `FaceDetector.scatter` looks: shifts of the window (shares of its side), and its turn (radians).
LOOKS = ((0.0, 0.0), (0.1, 0.0), (-0.1, 0.0), (0.0, 0.3))
# Where a box has a score below DOUBTFUL_SCORE, the face is imagined if it scatters more than this. 109 faces have 0.006
# to 0.031, blurred interiors 0.035 to 0.193, coins and cells 0.051 to 0.161: `benchmarks/tracking.py --only imagined`.
DOUBTFUL_SCORE, IMAGINED_SCATTER = 0.85, 0.045
BATCH = 16
# From pixels of the map of occluders to those of the window, for the columns of a 2×3 matrix.
MAP_PIXEL = np.array([2.0, 2.0, 1.0])


class FaceDetector:
    """Detects the faces of a photo and places 468 landmarks on each; loads its three networks once.

    Photos are uint8 (H, W, 3) sRGB, upright. Results are in photo pixels, with (0, 0) the top-left corner. A photo
    without a face gives an empty list. Not differentiable.

    Args:
        device: Device of the networks.

    Raises:
        AssetError: A weight file is missing or damaged.

    Example:
        >>> faces = FaceDetector().detect(mien.read_photo("photo.jpg").pixels)
        >>> faces[0].landmarks68_px
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.detector = BoxDetector(self.device)
        self.mesh = FaceMesh.from_assets().to(self.device)

    def detect_boxes(self, image: np.ndarray) -> list[FaceBox]:
        """Find faces of any size from 30 pixels, in any orientation.

        Args:
            image: The photo.

        Returns:
            Boxes, sorted by size times score, largest first.

        Raises:
            ImageError: The array is not a uint8 RGB photo.
        """
        return self.detector.detect(self._pyramid(image))

    def detect(
        self, image: np.ndarray, faces: Sequence[FaceBox] | None = None, *, max_faces: int | None = None
    ) -> list[FaceDetection]:
        """Place landmarks on every face.

        Boxes to which the mesh network gives a low confidence are dropped, and so are a second mesh on the same face
        and faces that the networks imagine in coins or blurred backgrounds.

        Args:
            image: The photo.
            faces: Boxes from `detect_boxes`; found here if None.
            max_faces: Maximum number of faces; all if None.

        Returns:
            Faces in the order of the boxes.

        Raises:
            ImageError: The array is not a uint8 RGB photo.
        """
        photo = self._pyramid(image)
        boxes = self.detector.detect(photo) if faces is None else list(faces)
        detections: list[FaceDetection] = []
        for start in range(0, len(boxes), BATCH):
            for face in self._place_meshes(photo, boxes[start : start + BATCH]):
                is_new = _is_confident(face) and not any(_same(face, other) for other in detections)
                if is_new and not self._is_imagined(photo, face):
                    detections.append(face)
            if max_faces is not None and len(detections) >= max_faces:
                break
        return detections[:max_faces]

    def _pyramid(self, image: np.ndarray) -> PhotoPyramid:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(
                f"image is {image.dtype} {image.shape}; a photo must be uint8 of shape (height, width, 3), as "
                "mien.read_photo returns it"
            )
        return PhotoPyramid(image, device=self.device)

    def follow(self, image: np.ndarray, near_px: Sequence[np.ndarray]) -> list[FaceDetection]:
        """Place landmarks on faces whose landmarks in the frame before are known, without the box detector.

        Args:
            image: A frame of a video.
            near_px: (468, 2 or 3) landmarks of each face in the frame before, pixels.

        Returns:
            One detection per face, in order. Its confidence tells whether the face is still there: see
            `CONFIDENCE_THRESHOLD`.

        Raises:
            ImageError: The array is not a uint8 RGB photo.
        """
        placed = self._placed(self._pyramid(image), [_Square.around(points) for points in near_px])
        return [_followed(mesh, confidence) for mesh, confidence in placed]

    def scatter(self, image: np.ndarray, landmarks_px: Sequence[np.ndarray]) -> list[float]:
        """How far the landmarks of each face move when the mesh network sees it shifted or turned in its window.

        The landmarks of a face stay on the face. Where the network imagines a face in a blurred background, whatever
        its confidence, they move with the window.

        Args:
            image: The photo.
            landmarks_px: (468, 2 or 3) landmarks of each face, pixels.

        Returns:
            Mean distance over the size of the face: about 0.01 for faces.

        Raises:
            ImageError: The array is not a uint8 RGB photo.
        """
        photo = self._pyramid(image)
        return [self._scatter(photo, points) for points in landmarks_px]

    def _scatter(self, photo: PhotoPyramid, points_px: np.ndarray) -> float:
        square = _Square.around(points_px)
        matrices = [square.moved(*look).matrix() for look in LOOKS]
        windows, inside = photo.sample_many(matrices, MESH_SIZE, padding="zeros")
        with torch.inference_mode():
            found = self.mesh(normalise_exposure(windows, inside))[0].cpu().double().numpy()
        meshes = np.stack([_to_photo(mesh, matrix)[:, :2] for mesh, matrix in zip(found, matrices, strict=True)])
        distances = np.linalg.norm(meshes[1:] - meshes[0], axis=-1)
        return float(distances.mean() / np.ptp(meshes[0], axis=0).max())

    def _is_imagined(self, photo: PhotoPyramid, face: FaceDetection) -> bool:
        return face.score < DOUBTFUL_SCORE and self._scatter(photo, face.landmarks468_px) > IMAGINED_SCATTER

    def _place_meshes(self, photo: PhotoPyramid, faces: list[FaceBox]) -> list[FaceDetection]:
        placed = self._placed(photo, [_Square.of(face) for face in faces])
        return [
            FaceDetection(
                face.score,
                face.box_px,
                face.keypoints_px,
                mesh.points_px,
                mesh.irises_px,
                confidence,
                mesh.occluders,
            )
            for face, (mesh, confidence) in zip(faces, placed, strict=True)
        ]

    def _placed(self, photo: PhotoPyramid, squares: list[_Square]) -> list[tuple[_Mesh, float]]:
        """The mesh near each square, and the probability that there is a face."""
        meshes = self._settled(photo, squares, padding="zeros")
        # The network squeezes a face that ends at a black area. The confidence is that of the first meshes: continued
        # to the sides, some patterns without a face look like one.
        cut_off = [k for k, mesh in enumerate(meshes) if mesh.cut_off]
        whole = [k for k, mesh in enumerate(meshes) if not mesh.cut_off]
        continued = self._settled(photo, [_Square.around(meshes[k].points_px) for k in cut_off], padding="border")
        confirmed = [
            *self._confirmed(photo, continued, padding="border"),
            *self._confirmed(photo, [meshes[k] for k in whole], padding="zeros"),
        ]
        placed = meshes.copy()
        for k, mesh in zip([*cut_off, *whole], confirmed, strict=True):
            placed[k] = mesh
        return [(mesh, first.confidence) for mesh, first in zip(placed, meshes, strict=True)]

    def _settled(self, photo: PhotoPyramid, squares: list[_Square], *, padding: Padding) -> list[_Mesh]:
        """The mesh in each square, which is moved to the mesh until it stays."""
        squares = squares.copy()
        meshes: dict[int, _Mesh] = {}
        moving = list(range(len(squares)))
        for _ in range(PASSES):
            if not moving:
                break
            matrices = [squares[k].matrix() for k in moving]
            windows, inside = _sampled(photo, matrices, padding)
            with torch.inference_mode():
                points, rings, logits, covers = self.mesh.with_occluders(windows)
                covers = covers.sigmoid().cpu().numpy()
            confidences, cut_off = logits.sigmoid().tolist(), (inside.amin((1, 2)) == 0).tolist()
            still_moving = []
            for row, k in enumerate(moving):
                mesh = _to_photo(points[row].cpu().double().numpy(), matrices[row])
                iris = _to_photo(rings[row].cpu().double().numpy(), matrices[row])
                occluders = OccluderMap(covers[row], matrices[row] * MAP_PIXEL)
                meshes[k] = _Mesh(mesh, iris, confidences[row], cut_off[row], occluders)
                square = _Square.around(mesh)
                if square.differs(squares[k]):
                    still_moving.append(k)
                squares[k] = square
            moving = still_moving
        return [meshes[k] for k in range(len(squares))]

    def _confirmed(self, photo: PhotoPyramid, meshes: list[_Mesh], *, padding: Padding) -> list[_Mesh]:
        """The meshes, with occluders that the network sees in the mirror image of the face too.

        The head learnt from frontal portraits. On turned faces it takes shadows and far cheeks for occluders, but
        rarely both ways; hands, glasses and masks it sees both ways.
        """
        meshes = meshes.copy()
        touched = [k for k, mesh in enumerate(meshes) if mesh.occluders.touches(mesh.points_px)]
        if not touched:
            return meshes
        windows, _ = _sampled(photo, [meshes[k].occluders.photo_from_window / MAP_PIXEL for k in touched], padding)
        with torch.inference_mode():
            mirrored = self.mesh.with_occluders(windows.flip(-1).contiguous())[3].sigmoid().flip(-1).cpu().numpy()
        for k, other in zip(touched, mirrored, strict=True):
            meshes[k] = replace(meshes[k], occluders=meshes[k].occluders.where_also(other))
        return meshes


def _sampled(
    photo: PhotoPyramid, matrices: list[np.ndarray], padding: Padding
) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B S S"]]:
    """The windows as the mesh network wants them, and where they show the photo."""
    windows, inside = photo.sample_many(matrices, MESH_SIZE, padding=padding)
    if padding == "border":
        windows = _faded(windows, inside)
    return normalise_exposure(windows, inside), inside


def _faded(windows: Float[Tensor, "B 3 S S"], inside: Float[Tensor, "B S S"]) -> Float[Tensor, "B 3 S S"]:
    """The windows, with streaks outside the photo that fade into the blurred photo."""
    shown = inside[:, None]
    sharp = (2 * _box_blur(shown, FADE_RADIUS)).clamp(max=1)
    blurred = _box_blur(_box_blur(windows, BLUR_RADIUS), BLUR_RADIUS)
    return torch.where(shown > 0, windows, torch.lerp(blurred, windows, sharp))


def _box_blur(images: Float[Tensor, "B C S S"], radius: int) -> Float[Tensor, "B C S S"]:
    """Means of squares with a side of 2 radius + 1 pixels."""
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    side = 2 * radius + 1
    return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)


def detect_landmarks468(
    network: FaceMesh, pictures: Float[Tensor, "B 3 H W"], *, near_px: Float[Tensor, "B 468 2"]
) -> Float[Tensor, "B 468 2"]:
    """Detect the landmarks of one face per picture, given their approximate position.

    This is the last pass of `FaceDetector.detect`, for pictures that need no face detection. Faces are processed one by
    one, so that results do not depend on the rest of the batch, not even in the last digit. Runs on the CPU.

    Args:
        network: The mesh network.
        pictures: RGB in [0, 1].
        near_px: Approximate landmarks in picture pixels; they define the crop.

    Returns:
        Landmarks in picture pixels; not differentiable.
    """
    found = []
    for picture, guess in zip(pictures, near_px, strict=True):
        matrix = _Square.around(guess.double().numpy()).matrix()
        with_mask = torch.cat([picture, torch.ones_like(picture[:1])])[None]
        picture_from_window = torch.from_numpy(matrix)[None].to(picture.dtype)
        window = sample_affine(with_mask, picture_from_window, size=(MESH_SIZE, MESH_SIZE), padding="zeros")
        with torch.inference_mode():
            mesh = network(normalise_exposure(window[:, :3], (window[:, 3] > 0.5).float()))[0][0].double().numpy()
        found.append(torch.from_numpy(_to_photo(mesh, matrix)[:, :2]))
    return torch.stack(found).to(near_px.dtype)


@dataclass(frozen=True)
class _Mesh:
    """What the mesh network finds in one square; photo pixels."""

    points_px: np.ndarray
    irises_px: np.ndarray
    confidence: float
    cut_off: bool
    """Whether a part of the square is outside the photo."""
    occluders: OccluderMap


@dataclass(frozen=True)
class _Square:
    """The rotated square around a face that the mesh network sees; photo pixels and radians."""

    centre: np.ndarray
    side: float
    angle: float

    @classmethod
    def of(cls, face: FaceBox) -> _Square:
        angle = _roll(face.keypoints_px[0], face.keypoints_px[1])
        return cls((face.box_px[:2] + face.box_px[2:]) / 2, face.size_px * CROP_SCALE, angle)

    @classmethod
    def around(cls, landmarks468_px: np.ndarray) -> _Square:
        angle = _roll(*landmarks468_px[list(MEDIAPIPE_OUTER_EYE_CORNERS)])
        centre, side = _turned_box(landmarks468_px[:, :2], angle)
        return cls(centre, side * CROP_SCALE, angle)

    def matrix(self) -> np.ndarray:
        """2×3 matrix from pixels of the network's input to photo pixels."""
        return window_matrix(self.centre, self.side, MESH_SIZE, angle=self.angle)

    def moved(self, shift: float, turn: float) -> _Square:
        """A square beside it, by a share of its side, and turned."""
        return _Square(self.centre + np.array([shift * self.side, 0.0]), self.side, self.angle + turn)

    def differs(self, other: _Square) -> bool:
        """Whether it differs from another square by SETTLED or more."""
        moved = float(np.linalg.norm(self.centre - other.centre)) / other.side
        return max(moved, abs(float(np.log(self.side / other.side))), abs(self.angle - other.angle)) >= SETTLED


def _followed(mesh: _Mesh, confidence: float) -> FaceDetection:
    """A mesh as a detection: box and key points are those of the mesh."""
    points = mesh.points_px[:, :2]
    right_ear, left_ear = points[list(MEDIAPIPE_SIDES)]
    mouth = points[list(MEDIAPIPE_MOUTH_CORNERS)].mean(0)
    keypoints = np.stack([*mesh.irises_px[:, 0], points[MEDIAPIPE_NOSE_TIP], mouth, right_ear, left_ear])
    box = np.concatenate([points.min(0), points.max(0)])
    return FaceDetection(confidence, box, keypoints, mesh.points_px, mesh.irises_px, confidence, mesh.occluders)


def _is_confident(face: FaceDetection) -> bool:
    threshold = CONFIDENCE_THRESHOLD if face.score >= SURE_SCORE else HESITANT_CONFIDENCE
    return face.confidence >= threshold


def _roll(right: np.ndarray, left: np.ndarray) -> float:
    return float(np.arctan2(left[1] - right[1], left[0] - right[0]))


def _to_photo(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map points x, y (, z) from a window to the photo; z is only scaled."""
    xy = (points[..., :2] + MESH_OFFSET) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([xy, points[..., 2:] * np.linalg.norm(matrix[:, 0])], -1)


def _turned_box(points: np.ndarray, angle: float) -> tuple[np.ndarray, float]:
    """Return centre and longer side of the points' bounding box in axes turned by `angle`."""
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = points @ axes
    low, high = turned.min(0), turned.max(0)
    return axes @ ((low + high) / 2), float((high - low).max())


def _same(one: FaceDetection, other: FaceDetection) -> bool:
    """Whether two meshes lie on one face: their mean point distance is below a fifth of its size."""
    distance = np.linalg.norm(one.landmarks468_px[:, :2] - other.landmarks468_px[:, :2], axis=1).mean()
    return bool(distance < 0.2 * np.ptp(other.landmarks468_px[:, :2], axis=0).max())
