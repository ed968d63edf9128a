"""The morphable model as a module, and its reader."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mien.assets import asset_path
from mien.errors import FormatError
from mien.io.files import write_whole, writing
from mien.morphable.landmark_tables import PARTS
from mien.morphable.skinning import Skinning
from mien.typing import Float, Int, Tensor

FORMAT = "mien-model-1"
DEFAULT_MODEL = "mien-face"

ExpressionKind = Literal["strength", "deviation"]
"""Whether expression coefficients are strengths of actions from 0 to 1, or standard deviations of components."""
_EXPRESSION_RANGES = {"strength": (0.0, 1.0), "deviation": (-3.0, 3.0)}

_ARRAYS = (
    "mean", "triangles", "uv", "mirror", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis",
    "landmarks68", "contour_candidates", "mediapipe_triangles", "mediapipe_barycentrics",
    *(f"mask_{part}" for part in PARTS),
)  # fmt: skip

_LENGTHS = ("mean", "identity_basis", "expression_basis", "action_basis", "pose_basis")
"""Stored in the file's unit of length."""
_SKINNING = ("joint_regressor", "skin_weights", "pose_basis", "joint_parents")
_OPTIONAL = ("action_basis", *_SKINNING)
_SHAPES: dict[str, tuple[str | int, ...]] = {
    "mean": ("V", 3), "triangles": ("T", 3), "uv": ("V", 2), "mirror": ("V",), "identity_basis": ("I", "V", 3),
    "expression_basis": ("E", "V", 3), "albedo_mean": ("V", 3), "albedo_basis": ("A", "V", 3), "landmarks68": (68,),
    "contour_candidates": (17, "K"), "mediapipe_triangles": (468,), "mediapipe_barycentrics": (468, 3),
    "action_basis": ("N", "V", 3), "joint_regressor": ("J", "V"), "skin_weights": ("V", "J"),
    "pose_basis": ("P", "V", 3), "joint_parents": ("J",), **{f"mask_{part}": ("V",) for part in PARTS},
}  # fmt: skip
_INDICES = {
    "triangles": "V", "mirror": "V", "landmarks68": "V", "contour_candidates": "V", "mediapipe_triangles": "T",
    "joint_parents": "J",
}  # fmt: skip
"""Arrays of indices, and what they point into."""
_LOWEST = {"contour_candidates": -1, "joint_parents": -1}
"""Of the indices that may be absent; 0 for the others."""


@dataclass(frozen=True)
class PartMasks:
    """How much each vertex belongs to a part of the face, 0 to 1."""

    skin: Float[Tensor, "V"]
    lips: Float[Tensor, "V"]
    brows: Float[Tensor, "V"]
    eyes: Float[Tensor, "V"]
    """The visible caps of the eyeballs."""
    neck: Float[Tensor, "V"]
    mouth: Float[Tensor, "V"]
    """The inside of the mouth."""


class MorphableModel(nn.Module):
    """A linear model of face shape and albedo on a fixed mesh; lengths in metres, colours sRGB-encoded.

    The arrays are buffers, so that `.to(device)` and `state_dict` cover them. None of them is trained.
    """

    mean: Tensor
    triangles: Tensor
    uv: Tensor
    mirror: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    albedo_mean: Tensor
    albedo_basis: Tensor
    landmarks68: Tensor
    contour_candidates: Tensor
    mediapipe_triangles: Tensor
    mediapipe_barycentrics: Tensor
    action_basis: Tensor | None

    def __init__(
        self,
        name: str,
        arrays: dict[str, Tensor],
        *,
        expression_names: tuple[str, ...],
        licence: str,
        expression_kind: ExpressionKind = "strength",
        action_names: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        """`arrays` may hold `action_basis`, with its `action_names`, and the arrays of linear blend skinning.

        `notes` say which parts a conversion completed, and by which rule.
        """
        super().__init__()
        self.name = name
        self.expression_names = expression_names
        self.licence = licence
        self.expression_kind: ExpressionKind = expression_kind
        self.action_names = action_names
        self.notes = notes
        for key in _ARRAYS:
            self.register_buffer(key, arrays[key])
        self.register_buffer("action_basis", arrays.get("action_basis"))
        self.skinning = Skinning(*(arrays[key] for key in _SKINNING)) if _SKINNING[0] in arrays else None

    @property
    def expression_range(self) -> tuple[float, float]:
        """Least and largest expression coefficient that means something."""
        return _EXPRESSION_RANGES[self.expression_kind]

    @property
    def actions(self) -> tuple[tuple[str, ...], Float[Tensor, "N V 3"]]:
        """Named facial actions for animation, metres at full strength: ARKit's where the model has or was given them,
        else its own named expressions; none for a model with neither.
        """
        if self.action_basis is not None:
            return self.action_names, self.action_basis
        if self.expression_kind == "strength":
            return self.expression_names, self.expression_basis
        return (), self.expression_basis[:0]

    @property
    def masks(self) -> PartMasks:
        """The soft part masks of the vertices."""
        return PartMasks(*(self.get_buffer(f"mask_{part}") for part in PARTS))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all arrays: trained weights mean something only on the model they were trained with."""
        digest = hashlib.sha256()
        for key in _ARRAYS:
            digest.update(key.encode())
            digest.update(self.get_buffer(key).cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of identity, expression and albedo coefficients."""
        return len(self.identity_basis), len(self.expression_basis), len(self.albedo_basis)

    def vertices(self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"]) -> Float[Tensor, "B V 3"]:
        """Vertex positions in model space, metres: eq. 1, p = p̄ + A_id α_id + A_exp α_exp; differentiable."""
        offsets = identity @ self.identity_basis.flatten(1) + expression @ self.expression_basis.flatten(1)
        return self.mean + offsets.view(len(identity), -1, 3)

    def albedo(self, coefficients: Float[Tensor, "B A"]) -> Float[Tensor, "B V 3"]:
        """Vertex colours without light: eq. 2, b = b̄ + A_alb α_alb; differentiable, not clamped."""
        offsets = coefficients @ self.albedo_basis.flatten(1)
        return self.albedo_mean + offsets.view(len(coefficients), -1, 3)

    def mediapipe_points(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B 468 3"]:
        """The surface points that correspond to the 468 points of MediaPipe's face mesh."""
        corners = vertices[:, self.mediapipe_vertices]
        return (corners * self.mediapipe_barycentrics[:, :, None]).sum(2)

    @property
    def mediapipe_vertices(self) -> Int[Tensor, "468 3"]:
        """The corners of the triangles that carry MediaPipe's points."""
        return self.triangles[self.mediapipe_triangles]


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> MorphableModel:
    """Load a packaged model by its name, or a model file by its path; FormatError if it is not a mien model."""
    path = asset_path(f"{name_or_path}.safetensors") if _is_name(name_or_path) else Path(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FormatError(
                    f"{path} says format {metadata.get('format')!r}; this version of mien reads {FORMAT!r}."
                )
            missing = sorted(set(_ARRAYS) - set(file.keys()))
            if missing:
                raise FormatError(f"{path} lacks {', '.join(missing)}; build or convert the model again.")
            keys = (*_ARRAYS, *(key for key in _OPTIONAL if key in file.keys()))  # noqa: SIM118 (no mapping)
            stored = {key: file.get_tensor(key) for key in keys}
            wrong = [key for key, value in stored.items() if value.is_floating_point() == (key in _INDICES)]
            if wrong:
                raise FormatError(f"{path}: {wrong[0]} is {stored[wrong[0]].dtype}; convert the model again.")
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} is not a readable safetensors file: {error}; mien model convert makes one of other projects' files"
        ) from error
    described = _Description.of(metadata, path)
    arrays = {key: _to_memory(key, value, described.unit_m) for key, value in stored.items()}
    _check_arrays(arrays, described, path)
    return MorphableModel(
        described.name,
        arrays,
        expression_names=described.expression_names,
        licence=described.licence,
        expression_kind=described.expression_kind,
        action_names=described.action_names,
        notes=described.notes,
    )


def save_model(model: MorphableModel, path: str | os.PathLike[str]) -> None:
    """Write a model file that `load_model` reads back bit by bit, in metres and float32; OutputError on failure."""
    arrays = {key: model.get_buffer(key) for key in _ARRAYS}
    if model.action_basis is not None:
        arrays["action_basis"] = model.action_basis
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
        "action_names": json.dumps(model.action_names),
        "notes": json.dumps(model.notes),
    }
    with writing(Path(path)):
        write_whole(Path(path), lambda partial: save_file(stored, partial, metadata))


@dataclass(frozen=True)
class _Description:
    """The text that a model file carries."""

    name: str
    licence: str
    unit_m: float
    expression_names: tuple[str, ...]
    expression_kind: ExpressionKind
    action_names: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, metadata: dict[str, str], path: Path) -> _Description:
        try:
            unit = float(metadata["length_unit_m"])
            kind = metadata.get("expression_kind", "strength")
            texts = {key: json.loads(metadata.get(key, "[]")) for key in ("expression_names", "action_names", "notes")}
            name, licence = metadata["name"], metadata["licence"]
        except (KeyError, ValueError, RecursionError) as error:
            raise FormatError(f"{path}: its description is damaged ({error}); convert the model again.") from error
        are_texts = all(isinstance(v, list) and all(isinstance(t, str) for t in v) for v in texts.values())
        if kind not in ("strength", "deviation") or not are_texts or not (math.isfinite(unit) and unit > 0):
            raise FormatError(f"{path}: its description does not hold together; convert the model again.")
        names = {key: tuple(value) for key, value in texts.items()}
        return cls(name, licence, unit, expression_kind="strength" if kind == "strength" else "deviation", **names)


def _check_arrays(arrays: dict[str, Tensor], described: _Description, path: Path) -> None:
    """FormatError for shapes that do not fit together, indices that point nowhere and values that are not finite."""
    sizes: dict[str | int, int] = {"E": len(described.expression_names), "N": len(described.action_names)}
    for key, array in arrays.items():
        shape = _SHAPES[key]
        fits = array.ndim == len(shape) and all(
            side == (sizes.setdefault(name, side) if isinstance(name, str) else name)
            for side, name in zip(array.shape, shape, strict=False)
        )
        if not fits:
            raise FormatError(f"{path}: {key} is {tuple(array.shape)}; expected {shape} with {sizes}.".replace("'", ""))
        # Both extremes are finite exactly if every value is, and cost a twentieth of looking at each.
        if array.is_floating_point() and array.numel() and not torch.isfinite(torch.stack(array.aminmax())).all():
            raise FormatError(f"{path}: {key} holds values that are not finite.")
    for key, whole in _INDICES.items():
        indices = arrays.get(key, torch.empty(0))
        if indices.numel() and not _LOWEST.get(key, 0) <= int(indices.min()) <= int(indices.max()) < sizes[whole]:
            raise FormatError(f"{path}: {key} points outside its {sizes[whole]} entries.")
    if 0 < sum(key in arrays for key in _SKINNING) < len(_SKINNING):
        raise FormatError(f"{path}: has some of {', '.join(_SKINNING)}; expected all or none.")
    if _SKINNING[0] in arrays:
        _check_skinning(arrays["joint_parents"].tolist(), corrective_count=len(arrays["pose_basis"]), path=path)


def _check_skinning(parents: list[int], *, corrective_count: int, path: Path) -> None:
    if not parents or parents[0] != -1 or any(not 0 <= parents[j] < j for j in range(1, len(parents))):
        raise FormatError(f"{path}: joint_parents is no tree whose parents come first: {parents[:20]}.")
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
