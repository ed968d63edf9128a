"""The result for one face."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from mien.io.result_folder import load_result, save_result
from mien.typing import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One face of one photo. Lengths in metres, colours sRGB-encoded in [0, 1], maps with v = 1 in row 0.

    x_camera = diag(1, -1, -1) @ (scale · rotation @ x_model) + translation;
    x_pixel = focal_px · x_camera / z_camera + centre_px.
    """

    model_name: str
    image_size: tuple[int, int]
    """Width and height of the photo, upright as EXIF says; all pixel positions refer to it."""
    focal_px: float
    centre_px: Float[np.ndarray, "2"]
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    identity: Float[np.ndarray, "I"]
    """Standard deviations of the population."""
    expression: Float[np.ndarray, "E"]
    """Strength of each action, 0 to 1."""
    albedo: Float[np.ndarray, "A"]
    """Standard deviations of the population."""
    lighting: Float[np.ndarray, "9 3"]
    """Spherical harmonics per colour channel in view axes, see `mien.lighting`."""
    vertices_model: Float[np.ndarray, "V 3"]
    """Model space, with identity, expression and displacement, before the pose."""
    vertices: Float[np.ndarray, "V 3"]
    """Camera space: x right, y down, z forward."""
    triangles: Int[np.ndarray, "T 3"]
    uv: Float[np.ndarray, "V 2"]
    """v grows upwards."""
    xy: Float[np.ndarray, "V 2"]
    """Where each vertex lies in the photo, pixels."""
    visible: Bool[np.ndarray, "V"]
    """Vertices that the camera sees."""
    landmarks68: Float[np.ndarray, "68 2"]
    """The model's 68 points in the photo, pixels."""
    landmarks68_vertices: Int[np.ndarray, "68"]
    vertex_albedo: Float[np.ndarray, "V 3"]
    """Colour without light, of the linear model."""
    texture: Float[np.ndarray, "S S 3"]
    """The face's colours as the photo shows them, completed where it does not."""
    texture_offset: Float[np.ndarray, "D D 3"]
    """Added to the albedo by the detail step; zeros without it."""
    displacement: Float[np.ndarray, "D D"]
    """Along the normal, by the detail step; zeros without it."""
    landmark_error: float
    """Mean distance between the 51 inner landmarks, found and modelled, over that of the outer eye corners."""
    photometric_error: float
    """Root mean squared colour error of the textured mesh inside the face's mask, [0, 1]."""
    stage_seconds: tuple[tuple[str, float], ...]
    expression_names: tuple[str, ...] = ()
    """Names of the expression coefficients; empty where the maker did not say."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result into a folder that `load` reads; the format is described in `mien.io.result_folder`.

        Precision: float32 for arrays and coefficients, 1 µm for the displacement map, 1/255 for the texture, 1/508 for
        its offset map.

        Args:
            path: The folder, or the `reconstruction.npz` in it.

        Raises:
            OutputError: The folder cannot be written; nothing is left half-written.
        """
        save_result(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reconstruction:
        """Read a folder written by `save` or `mien reconstruct`.

        Args:
            path: The folder, or the `reconstruction.npz` in it.

        Returns:
            The saved result.

        Raises:
            FormatError: A file is missing, damaged or of another version; the message names it.
        """
        return load_result(path, build=cls)
