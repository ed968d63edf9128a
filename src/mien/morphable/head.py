"""The head around the face of the packaged model: scalp, ears, neck, eyeballs, teeth, tongue and mouth.

The face keeps its vertices and coefficients; the same coefficients move the rest. `models/build_head.py` makes the
file.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from mien.assets import load_metadata, load_tensors
from mien.errors import AssetError, ConfigError, ModelMismatch
from mien.io.reading import parse_json
from mien.morphable.model import MorphableModel
from mien.morphable.revisions import is_made_for
from mien.typing import Float, Int, Tensor

HEAD_FILE = "mien-head.safetensors"
FORMAT = "mien-head-1"
SKIN, EYES = "skin", ("eye_left", "eye_right")


@dataclass(frozen=True)
class HeadPart:
    """A part of the head as it is drawn."""

    name: str
    """skin, mouth, tongue, teeth, gums, eye_left or eye_right."""
    vertices: Int[Tensor, "N"]
    """Which of the head's vertices each vertex of the part is; the skin has those between the face's map and the
    outer skin's twice."""
    triangles: Int[Tensor, "T 3"]
    """Positions in `vertices`, counter-clockwise seen from outside."""


@dataclass(frozen=True)
class HeadModel:
    """The head of a face model. Its vertices are those of the face, in their order, and then its own."""

    mean: Float[Tensor, "H 3"]
    """Own vertices of the mean head, metres."""
    identity_basis: Float[Tensor, "I H 3"]
    """Metres per standard deviation of the population, in the components of the face model."""
    expression_basis: Float[Tensor, "E H 3"]
    """Metres at full strength of the blendshapes. Looks turn the eyeballs, `tongueOut` moves the tongue."""
    parts: tuple[HeadPart, ...]
    """The skin first. It leaves out the face's eye caps and the wall behind its lips."""
    skin_uv: Float[Tensor, "N 2"]
    """Texture coordinates of the skin, v up: the face's map in the left `face_width`, the outer skin on the right."""
    face_width: float
    """Width of the face's map in the atlas."""
    eye_uv: Float[Tensor, "M 2"]
    """Texture coordinates in the atlas of the last M own vertices: the left eyeball with its centre, then the right
    one. They show the face's eye caps."""
    seam: Int[Tensor, "K"]
    """Vertices of the face where the outer skin begins."""
    seam_shares: Float[Tensor, "O K"]
    """Shares of the seam's colours in those of the outer skin, which are the first of the own vertices."""
    eye_centres: tuple[int, int]
    """The own vertices that are the centres of the left and the right eyeball; no triangle uses them."""

    def own_vertices(self, identity: Float[Tensor, "B I"], expression: Float[Tensor, "B E"]) -> Float[Tensor, "B H 3"]:
        """The vertices beyond the face's, in model space; differentiable.

        Args:
            identity: Identity coefficients of the face.
            expression: Expression coefficients of the face.
        """
        offsets = torch.tensordot(identity, self.identity_basis, dims=1)
        return self.mean + offsets + torch.tensordot(expression, self.expression_basis, dims=1)

    def part(self, name: str) -> HeadPart:
        """One part by its name.

        Raises:
            ConfigError: There is none.
        """
        found = [part for part in self.parts if part.name == name]
        if not found:
            names = ", ".join(part.name for part in self.parts)
            raise ConfigError(f"the head has no part {name!r}; its parts are {names}.")
        return found[0]


def has_head(model: MorphableModel) -> bool:
    """Whether `load_head` finds a head for a face model."""
    return is_made_for(load_metadata(HEAD_FILE).get("model_hash", ""), model.fingerprint)


def load_head(model: MorphableModel) -> HeadModel:
    """The head of the packaged face model.

    Args:
        model: The face model.

    Raises:
        ModelMismatch: The model is another one; only `mien-face` has a head.
        AssetError: The packaged file is missing or damaged.
    """
    if not has_head(model):
        raise ModelMismatch(f"there is no head for the face model {model.name!r}; only mien-face has one.")
    return _packaged_head(len(model.mean))


@functools.lru_cache(maxsize=1)
def _packaged_head(face_count: int) -> HeadModel:
    metadata, arrays = load_metadata(HEAD_FILE), load_tensors(HEAD_FILE)
    if metadata.get("format") != FORMAT:
        raise AssetError(f"{HEAD_FILE} has the format {metadata.get('format')!r}; expected {FORMAT}; reinstall mien")
    unit = float(metadata["length_unit_m"])
    names = parse_json(metadata["parts"], list[str], HEAD_FILE, advice="reinstall mien", error=AssetError)
    parts = [_skin(arrays)]
    for number, name in enumerate(names):
        if name != SKIN:
            triangles = arrays["triangles"][arrays["part"] == number].long()
            vertices, local = torch.unique(triangles, return_inverse=True)
            parts.append(HeadPart(name, vertices, local))
    centres = [int(next(part for part in parts if part.name == eye).vertices.max()) + 1 for eye in EYES]
    left, right = (centre - face_count for centre in centres)  # each eyeball's centre follows its last vertex
    return HeadModel(
        mean=arrays["mean"].float() * unit,
        identity_basis=arrays["identity_basis"].float() * unit,
        expression_basis=arrays["expression_basis"].float() * unit,
        parts=tuple(parts),
        skin_uv=arrays["skin_uv"].float(),
        face_width=float(metadata["face_width"]),
        eye_uv=arrays["eye_uv"].float(),
        seam=arrays["seam"].long(),
        seam_shares=arrays["seam_shares"].float(),
        eye_centres=(left, right),
    )


def _skin(arrays: dict[str, Tensor]) -> HeadPart:
    """The skin without the triangles that eyeballs and mouth replace; they are among the face's, which come first."""
    triangles = arrays["skin_triangles"].long()
    shown = torch.ones(len(triangles), dtype=torch.bool)
    shown[arrays["hidden"].long()] = False
    return HeadPart(SKIN, arrays["skin_vertices"].long(), triangles[shown])
