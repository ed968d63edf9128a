"""The morphable model as a module, and its reader."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from mien.arrays import Float, Int, Tensor
from mien.assets import asset_path
from mien.errors import FormatError

FORMAT = "mien-model-1"
DEFAULT_MODEL = "mien-face"

_PARTS = ("skin", "lips", "brows", "eyes", "neck", "mouth")
_ARRAYS = (
    "mean", "triangles", "uv", "mirror", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis",
    "landmarks68", "contour_candidates", "mediapipe_triangles", "mediapipe_barycentrics",
    *(f"mask_{part}" for part in _PARTS),
)  # fmt: skip


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

    def __init__(
        self, name: str, arrays: dict[str, Tensor], *, expression_names: tuple[str, ...], licence: str
    ) -> None:
        super().__init__()
        self.name = name
        self.expression_names = expression_names
        self.licence = licence
        for key in _ARRAYS:
            self.register_buffer(key, arrays[key])

    @property
    def masks(self) -> PartMasks:
        """The soft part masks of the vertices."""
        return PartMasks(*(self.get_buffer(f"mask_{part}") for part in _PARTS))

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
            stored = {key: file.get_tensor(key) for key in _ARRAYS}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {error}") from error
    unit = float(metadata["length_unit_m"])
    return MorphableModel(
        metadata["name"],
        {key: _to_memory(key, value, unit) for key, value in stored.items()},
        expression_names=tuple(json.loads(metadata["expression_names"])),
        licence=metadata["licence"],
    )


def _is_name(name_or_path: str | Path) -> bool:
    return isinstance(name_or_path, str) and not name_or_path.endswith(".safetensors") and "/" not in name_or_path


def _to_memory(key: str, value: Tensor, unit: float) -> Tensor:
    if not value.is_floating_point():
        return value.long()
    value = value.float()
    return value * unit if key in ("mean", "identity_basis", "expression_basis") else value
