"""The morphable face model as a torch module, and the reader and writer of its file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from mien.assets import asset_path
from mien.errors import FormatError
from mien.io.files import write_whole, writing
from mien.io.reading import parse_json
from mien.io.tensors import open_tensors
from mien.morphable.landmark_tables import PARTS
from mien.morphable.skinning import Skinning
from mien.typing import Float, Int, Tensor

FORMAT = "mien-model-1"
DEFAULT_MODEL = "mien-face"

ExpressionKind = Literal["strength", "deviation"]
"""Unit of expression coefficients: "strength" of blendshapes, 0 to 1; or standard "deviation" of components."""
_EXPRESSION_RANGES = {"strength": (0.0, 1.0), "deviation": (-3.0, 3.0)}

_ARRAYS = (
    "mean", "triangles", "uv", "mirror", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis",
    "landmarks68", "contour_candidates", "mediapipe_triangles", "mediapipe_barycentrics",
    *(f"mask_{part}" for part in PARTS),
)  # fmt: skip

_LENGTHS = ("mean", "identity_basis", "expression_basis", "blendshape_basis", "pose_basis")
"""Arrays that the file stores in its unit of length."""
_SKINNING = ("joint_regressor", "skin_weights", "pose_basis", "joint_parents")
_OPTIONAL = ("blendshape_basis", *_SKINNING)
_FILE_NAMES = {"blendshape_basis": "action_basis"}
"""Names in the file where they differ from the names here: format mien-model-1 was fixed before the renaming."""
_SHAPES: dict[str, tuple[str | int, ...]] = {
    "mean": ("V", 3), "triangles": ("T", 3), "uv": ("V", 2), "mirror": ("V",), "identity_basis": ("I", "V", 3),
    "expression_basis": ("E", "V", 3), "albedo_mean": ("V", 3), "albedo_basis": ("A", "V", 3), "landmarks68": (68,),
    "contour_candidates": (17, "K"), "mediapipe_triangles": (468,), "mediapipe_barycentrics": (468, 3),
    "blendshape_basis": ("N", "V", 3), "joint_regressor": ("J", "V"), "skin_weights": ("V", "J"),
    "pose_basis": ("P", "V", 3), "joint_parents": ("J",), **{f"mask_{part}": ("V",) for part in PARTS},
}  # fmt: skip
_INDICES = {
    "triangles": "V", "mirror": "V", "landmarks68": "V", "contour_candidates": "V", "mediapipe_triangles": "T",
    "joint_parents": "J",
}  # fmt: skip
"""Arrays of indices, and the size that they must stay below."""
_LOWEST = {"contour_candidates": -1, "joint_parents": -1}
"""Lowest index allowed, where -1 means absent; 0 for all others."""


@dataclass(frozen=True)
class PartMasks:
    """Part masks of a model: how far each vertex belongs to a part of the face, from 0 to 1."""

    skin: Float[Tensor, "V"]
    """Skin, with lips and brows."""
    lips: Float[Tensor, "V"]
    """The red of the lips."""
    brows: Float[Tensor, "V"]
    """Both eyebrows."""
    eyes: Float[Tensor, "V"]
    """The visible caps of the eyeballs."""
    neck: Float[Tensor, "V"]
    """The neck below the jaw."""
    mouth: Float[Tensor, "V"]
    """The inside of the mouth."""


class MorphableModel(nn.Module):
    """A linear model of face shape and albedo on a fixed mesh.

    Lengths are metres; +y is up, +x the subject's left, and the face looks along +z. Colours are sRGB-encoded, 0 to 1.
    All arrays are buffers, so `.to(device)` moves them and `state_dict` holds them; none is trained.

    Example:
        >>> model = mien.load_model()
        >>> neutral = model.vertices(torch.zeros(1, model.counts[0]), torch.zeros(1, model.counts[1]))
        >>> neutral.shape
        torch.Size([1, 9674, 3])

    Args:
        name: Name of the model.
        arrays: The arrays by the names of this class's fields and `mask_NAME` for each part. Optional are
            `blendshape_basis` and the four arrays of linear blend skinning (`joint_regressor`, `skin_weights`,
            `pose_basis`, `joint_parents`).
        expression_names: One name per expression component.
        licence: Terms of the model, shown to users.
        expression_kind: Unit of the expression coefficients.
        blendshape_names: Names of the rows of `blendshape_basis`.
        notes: How each part that a conversion completed was made.
    """

    mean: Tensor
    """(V, 3) vertices of the mean face, metres."""
    triangles: Tensor
    """(T, 3) vertex indices, counter-clockwise seen from outside."""
    uv: Tensor
    """(V, 2) position of each vertex in the UV map, in the unit square, v up."""
    mirror: Tensor
    """(V,) the corresponding vertex on the other side of the face."""
    identity_basis: Tensor
    """(I, V, 3) metres per standard deviation of the population."""
    expression_basis: Tensor
    """(E, V, 3) metres per unit of `expression_kind`."""
    albedo_mean: Tensor
    """(V, 3) vertex colours of the mean face."""
    albedo_basis: Tensor
    """(A, V, 3) colour per standard deviation of the population."""
    landmarks68: Tensor
    """(68,) vertices of the iBUG landmarks; contour points are those of a frontal view."""
    contour_candidates: Tensor
    """(17, K) vertices that may carry each contour landmark, -1 where a strip is shorter."""
    mediapipe_triangles: Tensor
    """(468,) triangles that carry MediaPipe's points."""
    mediapipe_barycentrics: Tensor
    """(468, 3) barycentric coordinates of MediaPipe's points in these triangles."""
    blendshape_basis: Tensor | None
    """(N, V, 3) ARKit blendshapes, metres at full strength, for models whose expressions are not ARKit's."""

    def __init__(
        self,
        name: str,
        arrays: dict[str, Tensor],
        *,
        expression_names: tuple[str, ...],
        licence: str,
        expression_kind: ExpressionKind = "strength",
        blendshape_names: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.expression_names = expression_names
        self.licence = licence
        self.expression_kind: ExpressionKind = expression_kind
        self.blendshape_names = blendshape_names
        self.notes = notes
        for key in _ARRAYS:
            self.register_buffer(key, arrays[key])
        self.register_buffer("blendshape_basis", arrays.get("blendshape_basis"))
        self.skinning = Skinning(*(arrays[key] for key in _SKINNING)) if _SKINNING[0] in arrays else None

    @property
    def expression_range(self) -> tuple[float, float]:
        """Smallest and largest plausible expression coefficient: (0, 1) for strengths, (-3, 3) for deviations.

        Returns:
            The two limits, in the unit of `expression_kind`.
        """
        return _EXPRESSION_RANGES[self.expression_kind]

    @property
    def blendshapes(self) -> tuple[tuple[str, ...], Float[Tensor, "N V 3"]]:
        """Named blendshapes for animation.

        Returns:
            Names and offsets in metres at full strength. They are ARKit's if the model has them, else the model's own
            named expressions; empty for a model that has neither.
        """
        if self.blendshape_basis is not None:
            return self.blendshape_names, self.blendshape_basis
        if self.expression_kind == "strength":
            return self.expression_names, self.expression_basis
        return (), self.expression_basis[:0]

    @property
    def actions(self) -> tuple[tuple[str, ...], Float[Tensor, "N V 3"]]:
        """Old name of `blendshapes`; version 0.3 will not have it.

        Returns:
            The same as `blendshapes`.
        """
        warnings.warn(
            "MorphableModel.actions is now called blendshapes; version 0.3 will not know the old name.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.blendshapes

    @property
    def masks(self) -> PartMasks:
        """The soft part masks of the vertices.

        Returns:
            One (V,) mask per part, 0 to 1; views of the model's buffers.
        """
        return PartMasks(*(self.get_buffer(f"mask_{part}") for part in PARTS))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all arrays: identifies the model that a trained network belongs to.

        Returns:
            64 hexadecimal digits, computed once per object.
        """
        digest = hashlib.sha256()
        for key in _ARRAYS:
            digest.update(key.encode())
            digest.update(self.get_buffer(key).cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of identity, expression and albedo coefficients.

        Returns:
            The three counts in this order.
        """
        return len(self.identity_basis), len(self.expression_basis), len(self.albedo_basis)

    def vertices(self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"]) -> Float[Tensor, "B V 3"]:
        """Vertex positions in model space: eq. 1, p = p̄ + A_id α_id + A_exp α_exp.

        Args:
            identity: Identity coefficients, standard deviations.
            expression: Expression coefficients, in the unit of `expression_kind`.

        Returns:
            Vertices in metres, differentiable in both arguments.
        """
        offsets = identity @ self.identity_basis.flatten(1) + expression @ self.expression_basis.flatten(1)
        return self.mean + offsets.view(len(identity), -1, 3)

    def albedo(self, coefficients: Float[Tensor, "B A"]) -> Float[Tensor, "B V 3"]:
        """Vertex colours without lighting: eq. 2, b = b̄ + A_alb α_alb.

        Args:
            coefficients: Albedo coefficients, standard deviations.

        Returns:
            sRGB-encoded colours, differentiable; not clamped to 0 to 1.
        """
        offsets = coefficients @ self.albedo_basis.flatten(1)
        return self.albedo_mean + offsets.view(len(coefficients), -1, 3)

    def mediapipe_points(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B 468 3"]:
        """The surface points that correspond to the 468 points of MediaPipe's face mesh.

        Args:
            vertices: Vertex positions, in any space and unit.

        Returns:
            The points in the same space, differentiable; each is a barycentric mix of a triangle's corners.
        """
        corners = vertices[:, self.mediapipe_vertices]
        return (corners * self.mediapipe_barycentrics[:, :, None]).sum(2)

    @property
    def mediapipe_vertices(self) -> Int[Tensor, "468 3"]:
        """The corners of the triangles that carry MediaPipe's points.

        Returns:
            Three vertex indices per point.
        """
        return self.triangles[self.mediapipe_triangles]


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> MorphableModel:
    """Load a face model.

    Args:
        name_or_path: Name of a packaged model, or path of a model file (`.safetensors`).

    Returns:
        The model on the CPU, in metres and float32.

    Raises:
        FormatError: The file is not a mien model, or its content does not fit together.
        AssetError: A packaged model is missing or damaged.

    Example:
        >>> model = mien.load_model()
        >>> model.counts
        (160, 52, 40)
    """
    path = asset_path(f"{name_or_path}.safetensors") if _is_name(name_or_path) else Path(name_or_path)
    with open_tensors(path, advice="`mien model convert` converts other formats") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise FormatError(
                f"{path}: the format is {metadata.get('format')!r}; this version of mien reads {FORMAT!r}."
            )
        in_file = set(file.keys())
        missing = sorted(set(_ARRAYS) - in_file)
        if missing:
            raise FormatError(f"{path}: {', '.join(missing)} is missing; build or convert the model again.")
        keys = (*_ARRAYS, *(key for key in _OPTIONAL if _FILE_NAMES.get(key, key) in in_file))
        stored = {key: file.get_tensor(_FILE_NAMES.get(key, key)) for key in keys}
        wrong = [key for key, value in stored.items() if value.is_floating_point() == (key in _INDICES)]
        if wrong:
            raise FormatError(f"{path}: {wrong[0]} is {stored[wrong[0]].dtype}; convert the model again.")
    described = _Description.of(metadata, path)
    arrays = {key: _to_memory(key, value, described.unit_m) for key, value in stored.items()}
    _check_arrays(arrays, described, path)
    return MorphableModel(
        described.name,
        arrays,
        expression_names=described.expression_names,
        licence=described.licence,
        expression_kind=described.expression_kind,
        blendshape_names=described.blendshape_names,
        notes=described.notes,
    )


def save_model(model: MorphableModel, path: str | os.PathLike[str]) -> None:
    """Write a model file that `load_model` reads back bit by bit.

    Args:
        model: The model; stored in metres and float32.
        path: File to write, replaced whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    arrays = {key: model.get_buffer(key) for key in _ARRAYS}
    if model.blendshape_basis is not None:
        arrays[_FILE_NAMES["blendshape_basis"]] = model.blendshape_basis
    if model.skinning is not None:
        arrays |= dict(zip(_SKINNING, model.skinning.arrays, strict=True))
    stored = {key: (a if a.is_floating_point() else a.int()).cpu().contiguous().clone() for key, a in arrays.items()}
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "licence": model.licence,
        "length_unit_m": "1",
        "expression_names": json.dumps(model.expression_names),
        "expression_kind": model.expression_kind,
        "action_names": json.dumps(model.blendshape_names),
        "notes": json.dumps(model.notes),
    }
    with writing(Path(path)):
        write_whole(Path(path), lambda partial: save_file(stored, partial, metadata))


@dataclass(frozen=True)
class _Description:
    """The text metadata of a model file."""

    name: str
    licence: str
    unit_m: float
    expression_names: tuple[str, ...]
    expression_kind: ExpressionKind
    blendshape_names: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, metadata: dict[str, str], path: Path) -> _Description:
        try:
            unit = float(metadata["length_unit_m"])
            kind = metadata.get("expression_kind", "strength")
            name, licence = metadata["name"], metadata["licence"]
        except (KeyError, ValueError) as error:
            raise FormatError(f"{path}: the metadata is damaged ({error}); convert the model again.") from error
        texts: dict[str, tuple[str, ...]] = {}
        for key in ("expression_names", "action_names", "notes"):
            where = f"{path}: {key} in the metadata"
            texts[key] = parse_json(metadata.get(key, "[]"), tuple[str, ...], where, advice="convert the model again")
        if kind not in ("strength", "deviation") or not (math.isfinite(unit) and unit > 0):
            raise FormatError(
                f"{path}: the metadata has expression_kind={kind!r}, length_unit_m={unit!r}; expected strength or "
                "deviation, and a positive unit; convert the model again."
            )
        return cls(
            name,
            licence,
            unit,
            expression_names=texts["expression_names"],
            expression_kind="strength" if kind == "strength" else "deviation",
            blendshape_names=texts["action_names"],
            notes=texts["notes"],
        )


def _check_arrays(arrays: dict[str, Tensor], described: _Description, path: Path) -> None:
    """FormatError for shapes that do not fit together, indices out of range and values that are not finite."""
    sizes: dict[str | int, int] = {"E": len(described.expression_names), "N": len(described.blendshape_names)}
    for key, array in arrays.items():
        shape = _SHAPES[key]
        fits = array.ndim == len(shape) and all(
            side == (sizes.setdefault(name, side) if isinstance(name, str) else name)
            for side, name in zip(array.shape, shape, strict=False)
        )
        if not fits:
            raise FormatError(f"{path}: {key} is {tuple(array.shape)}; expected {shape} with {sizes}.".replace("'", ""))
        # Minimum and maximum are finite exactly if every value is; they take a twentieth of the time of isfinite.
        if array.is_floating_point() and array.numel() and not torch.isfinite(torch.stack(array.aminmax())).all():
            raise FormatError(f"{path}: {key} holds values that are not finite.")
    for key, whole in _INDICES.items():
        indices = arrays.get(key, torch.empty(0))
        if indices.numel() and not _LOWEST.get(key, 0) <= int(indices.min()) <= int(indices.max()) < sizes[whole]:
            raise FormatError(f"{path}: {key} holds an index outside 0 to {sizes[whole] - 1}; convert the model again.")
    if 0 < sum(key in arrays for key in _SKINNING) < len(_SKINNING):
        raise FormatError(f"{path}: only some of {', '.join(_SKINNING)} are present; expected all four or no skinning.")
    if _SKINNING[0] in arrays:
        _check_skinning(arrays["joint_parents"].tolist(), corrective_count=len(arrays["pose_basis"]), path=path)


def _check_skinning(parents: list[int], *, corrective_count: int, path: Path) -> None:
    if not parents or parents[0] != -1 or any(not 0 <= parents[j] < j for j in range(1, len(parents))):
        raise FormatError(
            f"{path}: joint_parents is {parents[:20]}; expected -1 first and each parent before its children."
        )
    if corrective_count != 9 * (len(parents) - 1):
        raise FormatError(
            f"{path}: pose_basis has {corrective_count} fields; expected 9 for each of {len(parents) - 1} joints."
        )


def _is_name(name_or_path: str | Path) -> bool:
    return isinstance(name_or_path, str) and not name_or_path.endswith(".safetensors") and "/" not in name_or_path


def _to_memory(key: str, value: Tensor, unit: float) -> Tensor:
    if not value.is_floating_point():
        return value.long()
    value = value.float()
    return value * unit if key in _LENGTHS and unit != 1 else value
