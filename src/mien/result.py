"""The result for one face."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mien.camera import FocalSource, opengl_projection, to_camera_axes, to_model_axes
from mien.errors import ConfigError
from mien.io.result_files import MeshOptions
from mien.io.result_folder import load_result
from mien.quality import FaceQuality
from mien.typing import Bool, Float, Int

if TYPE_CHECKING:
    from mien.io.photo import Photo
    from mien.morphable import MorphableModel

# Wide enough for every photo; a 24-bit depth buffer still resolves 4 µm at a distance of 0.8 m.
NEAR_M, FAR_M = 0.01, 1000.0
"""Clipping planes of `projection_matrix_opengl` in coefficients.json, metres."""


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """One face of one photo, as NumPy arrays.

    Lengths are metres, colours sRGB-encoded in [0, 1], pixel positions those of the upright photo. Row 0 of a UV map is
    v = 1. With the model's axes x to the subject's left, y up and z out of the face:

        x_camera = diag(1, -1, -1) @ (scale · rotation @ x_model) + translation
        x_pixel = focal_px · x_camera / z_camera + centre_px

    Example:
        >>> face = mien.Reconstruction.load("out/photo/face0")
        >>> face.vertices.shape, face.landmark_error
    """

    model_name: str
    """Name of the face model."""
    image_size: tuple[int, int]
    """Width and height of the photo, upright according to EXIF."""
    focal_px: float
    """Focal length of the camera in pixels."""
    centre_px: Float[np.ndarray, "2"]
    """Principal point of the camera in pixels."""
    scale: float
    """Size of the face relative to the model's metres."""
    rotation: Float[np.ndarray, "3 3"]
    """Rotation of the head, in model axes."""
    translation: Float[np.ndarray, "3"]
    """Position of the model's origin in camera space."""
    identity: Float[np.ndarray, "I"]
    """Identity coefficients, standard deviations of the population."""
    expression: Float[np.ndarray, "E"]
    """Expression coefficients: strengths of the blendshapes, 0 to 1, for the packaged model."""
    albedo: Float[np.ndarray, "A"]
    """Albedo coefficients, standard deviations of the population."""
    lighting: Float[np.ndarray, "9 3"]
    """Spherical harmonics per colour channel in view axes, see `mien.lighting`."""
    vertices_model: Float[np.ndarray, "V 3"]
    """Vertices in model space, with identity, expression and displacement, before the pose."""
    vertices: Float[np.ndarray, "V 3"]
    """Vertices in camera space: x right, y down, z forward."""
    triangles: Int[np.ndarray, "T 3"]
    """Vertex indices, counter-clockwise seen from outside."""
    uv: Float[np.ndarray, "V 2"]
    """Texture coordinates; v grows upwards."""
    xy: Float[np.ndarray, "V 2"]
    """Position of each vertex in the photo, pixels."""
    visible: Bool[np.ndarray, "V"]
    """Whether the camera sees the vertex."""
    landmarks68: Float[np.ndarray, "68 2"]
    """The model's 68 landmarks in the photo, pixels, in iBUG order."""
    landmarks68_vertices: Int[np.ndarray, "68"]
    """The vertices at these landmarks."""
    vertex_albedo: Float[np.ndarray, "V 3"]
    """Colour without lighting, of the linear model."""
    texture: Float[np.ndarray, "S S 3"]
    """Colours as in the photo, lighting included, completed where the photo does not show the face."""
    texture_offset: Float[np.ndarray, "D D 3"]
    """Added to the albedo by the detail step; zeros without it."""
    displacement: Float[np.ndarray, "D D"]
    """Displacement along the normal by the detail step, metres; zeros without it."""
    landmark_error: float
    """Mean distance of the 51 inner landmarks, detected and modelled, over that of the outer eye corners."""
    photometric_error: float
    """Root mean squared colour error of the textured mesh inside the face's mask, [0, 1]."""
    stage_seconds: tuple[tuple[str, float], ...]
    """Name and seconds of each stage of the computation."""
    expression_names: tuple[str, ...] = ()
    """Names of the expression coefficients; empty if the model has none."""
    focal_source: FocalSource = "unknown"
    """Where `focal_px` comes from: "given", "exif", "prior" (the typical distance of a face), or "fitted"; "unknown" in
    results of mien 0.1."""
    hair_colour: Float[np.ndarray, "3"] | None = None
    """Colour of the hair in white light, as far as the photo shows hair above the forehead; else of what is there. None
    if the photo ends below, and in results of mien 0.2."""
    quality: FaceQuality | None = None
    """How well the photo shows the face, with flags for what makes the result less certain; None in results of mien 0.2
    and earlier."""

    def __repr__(self) -> str:
        width, height = self.image_size
        return (
            f"Reconstruction(model_name={self.model_name!r}, image_size=({width}, {height}), "
            f"landmark_error={self.landmark_error:.3f}, photometric_error={self.photometric_error:.3f})"
        )

    @property
    def camera_matrix(self) -> Float[np.ndarray, "3 3"]:
        """OpenCV's camera matrix K, from camera space to pixels; `view_matrix` is its extrinsic matrix.

        Pixels count from the top-left corner of the photo, so OpenCV's own functions, which count from the centre of
        the first pixel, need a principal point that is 0.5 smaller.
        """
        (x, y), focal = map(float, self.centre_px), float(self.focal_px)
        return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]])

    @property
    def view_matrix(self) -> Float[np.ndarray, "4 4"]:
        """From model space, that of GLB, OBJ and PLY, to camera space in OpenCV's axes: x right, y down, z forward.

        It acts on column vectors (x, y, z, 1) in metres, and includes the scale of the face.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = to_camera_axes(float(self.scale) * self.rotation.astype(np.float64).T).T
        matrix[:3, 3] = self.translation
        return matrix

    @property
    def view_matrix_opengl(self) -> Float[np.ndarray, "4 4"]:
        """`view_matrix` for OpenGL, glTF, three.js and Blender, whose camera has x right, y up and z to the viewer."""
        matrix = self.view_matrix
        matrix[:3] = to_model_axes(matrix[:3].T).T
        return matrix

    def projection_matrix_opengl(self, near_m: float = NEAR_M, far_m: float = FAR_M) -> Float[np.ndarray, "4 4"]:
        """OpenGL's projection matrix, which maps `view_matrix_opengl`'s space to clip space over the whole photo.

        Args:
            near_m: Distance of the near clipping plane, metres.
            far_m: Distance of the far clipping plane, metres.

        Returns:
            Acts on column vectors; after the division by w, x and y run from -1 to 1 over the photo, y up.

        Raises:
            ConfigError: The planes are not 0 < near_m < far_m.
        """
        if not 0 < near_m < far_m:
            raise ConfigError(f"near_m={near_m:g} and far_m={far_m:g} are out of range; use 0 < near_m < far_m.")
        width, height = self.image_size
        return opengl_projection(
            float(self.focal_px), self.centre_px, image_size=(height, width), near_m=near_m, far_m=far_m
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        formats: str | Iterable[str] | None = None,
        parts: str | Iterable[str] = "face",
        model: MorphableModel | None = None,
        photo: Photo | None = None,
        neutral: bool = False,
        units: str = "m",
        embed_camera: bool = False,
        morphs: str = "sparse",
        scalp: str = "hair",
    ) -> None:
        """Write the files of the face into a folder, or one mesh file; docs/outputs.md describes the files.

        Precision of the npz: float32 for arrays and coefficients, 1 µm for the displacement map, 1/255 for the texture,
        1/508 for its offset map.

        Args:
            path: The folder, or the `reconstruction.npz` in it. A path that ends in `.glb`, `.obj`, `.ply`, `.usdz`
                or `.vrm` is one mesh file.
            formats: What goes into the folder, some of `glb`, `obj`, `ply`, `usd`, `vrm`, `maps`, `sheet`, `overlay`,
                `expressions`, `turntable`, `video`, `npz` and `json`, or one text with commas. Default: `npz`, `json`,
                with a model `glb`, and with a photo `sheet`. Files of an earlier result in other formats are removed.
                `load` needs `npz`.
            parts: What meshes show: "face", "head", or both: "face,head". `vrm` is always the head.
            model: The face's model. Default: the packaged or converted model of the face's `model_name`, which is
                loaded at each call; `Reconstructor.model` saves that time.
            photo: The photo that shows the face, for `sheet` and `overlay`.
            neutral: Whether meshes show the neutral face instead of the photo's expression.
            units: Unit of lengths in OBJ, PLY and USD: "m", "cm" or "mm". GLB and VRM are in metres.
            embed_camera: Whether GLB and USD contain the photo's camera, with the face where the camera saw it.
            morphs: How GLBs store morph targets: "sparse", or "dense" for programs that lose sparse data.
            scalp: What the scalp of a head shows: "hair", short hair in the photo's colour, or "skin", a shaved scalp.

        Raises:
            ConfigError: A choice is unknown or has no effect, or a format needs a model or a photo that is missing or
                another face's.
            ModelMismatch: A head is asked for, and the model is not `mien-face`.
            BackendUnavailable: USD is asked for, and the package usd-core is missing.
            OutputError: The place cannot be written; it is unchanged.

        Example:
            >>> face.save("out/face0")
            >>> face.save("anna.glb", parts="head")
        """
        from mien.export import save_reconstruction  # noqa: PLC0415 (it imports this module)

        options = MeshOptions.parsed(
            parts, neutral=neutral, units=units, embed_camera=embed_camera, morphs=morphs, scalp=scalp
        )
        save_reconstruction(self, path, formats=formats, model=model, photo=photo, options=options)

    def glb_bytes(
        self,
        model: MorphableModel | None = None,
        *,
        parts: str = "face",
        neutral: bool = False,
        embed_camera: bool = False,
        morphs: str = "sparse",
        scalp: str = "hair",
    ) -> bytes:
        """Encode the face as a GLB file: mesh, texture and the expressions as morph targets.

        Args:
            model: The face's model; default as in `save`.
            parts: "face" or "head".
            neutral: As in `save`, like the three below.
            embed_camera: As in `save`.
            morphs: As in `save`.
            scalp: As in `save`.

        Returns:
            The content of the file.

        Raises:
            ConfigError: The model is another face's, or cannot be found by its name, or a choice is unknown.
            ModelMismatch: The head is asked for, and the model is not `mien-face`.
        """
        from mien.export import glb_of  # noqa: PLC0415 (it imports this module)

        options = MeshOptions.parsed(parts, neutral=neutral, embed_camera=embed_camera, morphs=morphs, scalp=scalp)
        return glb_of(self, model, options)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reconstruction:
        """Read a folder that `save`, `write_reconstruction` or `mien reconstruct` wrote.

        Args:
            path: The folder, or the `reconstruction.npz` in it.

        Returns:
            The saved result.

        Raises:
            FormatError: A file is missing, damaged or of another version; the message names it.
        """
        return load_result(path, build=cls)


@dataclass(frozen=True, eq=False, repr=False)
class PersonReconstruction:
    """One person in several photos: one identity, albedo and texture.

    Example:
        >>> person = mien.Reconstructor().joint(["anna1.jpg", "anna2.jpg"])
        >>> person.face.save("out/anna")
    """

    faces: tuple[Reconstruction | None, ...]
    """The face in each photo, in the order of the photos; None for a photo that does not show the person. Identity and
    albedo are the same in all of them; the texture is the same up to the light of the photo."""
    photo_weights: tuple[float, ...]
    """Influence of each photo, 0 to 1: 1 for a photo that the person fits as well as a face of its own does, 0 for a
    photo that was left out."""
    reasons: tuple[str, ...]
    """Why a photo was left out or counts for little; empty for the others."""
    reference: int
    """Number of the photo that shows the person best: of a large weight, from the front, and large."""

    @property
    def face(self) -> Reconstruction:
        """The person as in the reference photo."""
        face = self.faces[self.reference]
        assert face is not None, "the reference is one of the photos that show the person"
        return face

    def __repr__(self) -> str:
        shown = sum(face is not None for face in self.faces)
        return f"PersonReconstruction(photos={len(self.faces)}, shown_in={shown}, reference={self.reference})"
