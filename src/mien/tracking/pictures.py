"""Pictures of tracked people: the overlay on the video, and a sheet of key frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from mien.camera import Camera, Pose
from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet
from mien.export.face_view import FaceView
from mien.export.images import FacePainter
from mien.geometry import rotmat_to_rotvec
from mien.lighting import ambient_lighting
from mien.morphable import MorphableModel
from mien.rendering.posed_surface import PosedSurface, posed_surface
from mien.tracking.track import Track, TrackRows
from mien.typing import Float, Tensor, UInt8

OVERLAY_SIDE = 1280
"""Longest side of the overlay video, pixels."""
CLAY_SHARE = 0.72
"""Opacity of the face over the video: the eyes and the mouth below it stay visible, to compare."""
PANEL_SIDE = 256
"""Side of a picture in the sheet, pixels."""
KEY_FRAMES = 8
"""Frames in the sheet."""
TINTS = ((1.0, 0.93, 0.84), (0.78, 0.9, 1.0), (0.8, 1.0, 0.82), (1.0, 0.8, 0.9))
"""Colours of the faces of several people, in turn."""
_MARGIN = 1.5
"""Side of the crops in the sheet over the size of the face."""


@dataclass(frozen=True, eq=False)
class _Placed:
    """The face in one frame."""

    surface: PosedSurface
    rotation: Float[Tensor, "3 3"]


class TrackPainter:
    """Draws one tracked person.

    Args:
        track: The person, with portrait.
        model: The face model.
    """

    def __init__(self, track: Track, model: MorphableModel) -> None:
        assert track.portrait is not None  # tracks that were just computed have one
        self.track, self.model, self.portrait = track, model, track.portrait
        neutral = model.vertices(torch.from_numpy(track.identity)[None], torch.zeros(1, model.counts[1]))
        self.neutral = neutral[0]
        self.row_of = {frame: row for row, frame in enumerate(track.frames.tolist())}
        self.tint = torch.tensor(TINTS[track.number % len(TINTS)])

    def follow(self, rows: TrackRows) -> None:
        """Draw other frames next."""
        self.track = replace(self.track, **vars(rows))
        self.row_of = {frame: row for row, frame in enumerate(self.track.frames.tolist())}

    def draw(self, picture: UInt8[np.ndarray, "h w 3"], frame: int, *, scale: float) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with the face in clay over it, if the person is seen in the frame.

        Args:
            picture: The frame, resized by `scale`.
            frame: Its number.
            scale: Pixels of the picture per pixel of the video.
        """
        row = self.row_of.get(frame)
        if row is None:
            return picture
        camera = self._camera().cropped(
            scale=torch.tensor([scale]), shift_px=torch.zeros(1, 2), image_size=picture.shape[:2]
        )
        return self._clay(picture, self._placed(row), camera)

    def _clay(self, picture: UInt8[np.ndarray, "h w 3"], face: _Placed, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
        view = FaceView.of(self.portrait, face.surface.camera[0], camera=camera)
        normals = torch.nn.functional.normalize(view.vertex_values(face.surface.normals[0].numpy()), dim=-1)
        drawn = view.over(FacePainter.clay(normals) * self.tint, picture)
        return _mixed(picture, drawn, CLAY_SHARE)

    def _textured(
        self, picture: UInt8[np.ndarray, "h w 3"], face: _Placed, camera: Camera
    ) -> UInt8[np.ndarray, "h w 3"]:
        view = FaceView.of(self.portrait, face.surface.camera[0], camera=camera)
        texture = torch.from_numpy(self.portrait.texture.astype(np.float32)).permute(2, 0, 1).contiguous()
        return view.over(view.map_values(texture), picture)

    def panels(self, pixels: UInt8[np.ndarray, "H W 3"], row: int) -> list[UInt8[np.ndarray, "S S 3"]]:
        """The frame around the face, with the face in clay, with its texture, and the texture from the front."""
        points = self.track.landmarks68[row]
        side = _MARGIN * float(np.ptp(points, axis=0).max())
        left, top = points.mean(0) - side / 2
        box = (left, top, left + side, top + side)
        crop = Image.fromarray(pixels).transform(
            (PANEL_SIDE, PANEL_SIDE), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC
        )
        picture = np.array(crop)
        zoom = PANEL_SIDE / side
        camera = self._camera().cropped(
            scale=torch.tensor([zoom]),
            shift_px=torch.tensor([[-left * zoom, -top * zoom]], dtype=torch.float32),
            image_size=(PANEL_SIDE, PANEL_SIDE),
        )
        face = self._placed(row)
        plain = np.full_like(picture, 229)
        front = self._placed(row, front=True)
        front_camera = Camera.from_fov(20.0, image_size=(PANEL_SIDE, PANEL_SIDE))
        return [
            picture,
            self._clay(picture, face, camera),
            self._textured(picture, face, camera),
            self._textured(plain, front, front_camera),
        ]

    def _camera(self) -> Camera:
        width, height = self.track.image_size
        centre = torch.from_numpy(self.track.centre_px.astype(np.float32))[None]
        return Camera(torch.tensor([self.track.focal_px], dtype=torch.float32), centre, (height, width))

    def _placed(self, row: int, *, front: bool = False) -> _Placed:
        """The face where it is in a frame, or in front of a camera that looks at it from 0.75 m."""
        expression = torch.from_numpy(self.track.expression[row])
        vertices = self.neutral + torch.einsum("e,evd->vd", expression, self.model.expression_basis)
        rotation = torch.eye(3) if front else torch.from_numpy(self.track.rotation[row])
        translation = torch.tensor([0.0, 0.0, 0.75]) if front else torch.from_numpy(self.track.translation[row])
        pose = Pose(rotmat_to_rotvec(rotation[None]), translation[None], torch.ones(1))
        return _Placed(posed_surface(self.model, vertices[None], pose, ambient_lighting(1)), rotation)


def key_rows(track: Track, count: int = KEY_FRAMES) -> list[int]:
    """Rows of frames that differ most in pose and expression, in the order of time: the first one, then the farthest.

    Args:
        track: The person.
        count: Number of frames; fewer if the track is shorter.
    """
    rows = np.flatnonzero(track.detected)
    rows = rows[:: max(len(rows) // 2000, 1)]
    # Half a turn of the head by 60° counts like a blendshape at full strength.
    shown = np.concatenate([track.expression[rows], 2 * track.rotation[rows, :, 2], track.gaze[rows].reshape(-1, 4)], 1)
    chosen = [0]
    distance = np.linalg.norm(shown - shown[0], axis=1)
    while len(chosen) < min(count, len(rows)):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(shown - shown[farthest], axis=1))
    return sorted(rows[chosen].tolist())


def key_sheet(columns: list[list[UInt8[np.ndarray, "S S 3"]]], times_s: list[float]) -> UInt8[np.ndarray, "H W 3"]:
    """Key frames side by side.

    Args:
        columns: The panels of each frame, from the top.
        times_s: When the frames are shown, seconds.
    """
    style = LabelStyle(26, font_size=16, offset=(PANEL_SIDE // 2, 15), centred=True)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return contact_sheet(rows, SheetLayout(8, PAPER, style), column_labels=[f"{time_s:.2f} s" for time_s in times_s])


def overlay_scale(size: tuple[int, int]) -> float:
    """Pixels of the overlay per pixel of the video."""
    return min(1.0, OVERLAY_SIDE / max(size))


def resized(pixels: UInt8[np.ndarray, "H W 3"], scale: float) -> UInt8[np.ndarray, "h w 3"]:
    """A frame in the size of the overlay."""
    if scale == 1:
        return pixels
    height, width = pixels.shape[:2]
    size = max(round(width * scale), 2), max(round(height * scale), 2)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _mixed(
    below: UInt8[np.ndarray, "h w 3"], above: UInt8[np.ndarray, "h w 3"], share: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The upper picture over the lower one where they differ, partly transparent."""
    changed = (below != above).any(-1)
    mixed = below.copy()
    mixed[changed] = (below[changed] * (1 - share) + above[changed] * share).astype(np.uint8)
    return mixed
