"""The focal length of a photo without EXIF: that of a camera at a typical distance from the face.

The field of view of a photo says little, because photos are cropped. Its effect on the shape is the perspective, and
that depends on the distance alone. So the face stands at the same distance in a photo and in every crop of it.
"""

from __future__ import annotations

import numpy as np

from mien.typing import Float

TYPICAL_DISTANCE_M = 0.8
"""Assumed distance of a face from the camera. The error in the perspective grows with the error of 1 / distance; 1.25
per metre is in the middle between a self-portrait at 0.5 m and a portrait at 2 m."""
FACE_RADIUS_M = 0.056
"""Root mean square distance of MediaPipe's points from their mean, on photos: 54 mm for the mean face, and the depth
that the mesh network predicts is larger. On 122 photos, up to the profile, it gives the size of the mean face that fits
the points best to within 5 %."""
WIDEST_FOCAL = 24 / 36
"""Smallest assumed focal length over the longer side of a photo: that of a 24 mm lens on a full-frame camera, or of the
main camera of a phone. A small face in a large photo is therefore farther away than the typical distance."""


def typical_focal_px(
    landmarks468_px: Float[np.ndarray, "468 3"], *, image_size: tuple[int, int], centre_px: tuple[float, float]
) -> float:
    """The focal length with which the face stands at the typical distance, or farther away in a wide photo.

    Args:
        landmarks468_px: MediaPipe's points with their depth, pixels of the photo.
        image_size: Rows and columns of the photo.
        centre_px: Principal point (x, y). A photo around another point is taken for a crop of a larger photo.

    Returns:
        The focal length, pixels.
    """
    from_mean = landmarks468_px - landmarks468_px.mean(0)
    radius_px = float(np.sqrt((from_mean**2).sum(1).mean()))
    height, width = image_size
    (x, y) = centre_px
    longer_side = 2 * max(x, width - x, y, height - y)
    return max(TYPICAL_DISTANCE_M * radius_px / FACE_RADIUS_M, WIDEST_FOCAL * longer_side)
