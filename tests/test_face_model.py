"""The packaged face model: mesh, UV map, lips, lids, expressions, and a population like real people's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "src" / "mien" / "assets" / "mien-face.safetensors"
REFLECT_X = np.array([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with safe_open(ASSET, "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(ASSET, "np") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def anthropometry() -> ModuleType:
    pytest.importorskip("scipy", reason="the build scripts of the model need scipy")
    sys.path.insert(0, str(ROOT / "models"))
    try:
        import anthropometry as module
    finally:
        sys.path.pop(0)
    return module


def boundary_edges(triangles: np.ndarray) -> set[tuple[int, int]]:
    edges = {(int(a), int(b)) for t in triangles for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    return {(a, b) for a, b in edges if (b, a) not in edges}


def test_mesh_is_a_manifold_disc(arrays: dict[str, np.ndarray]) -> None:
    triangles = arrays["triangles"]
    directed = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)
    following = dict(boundary_edges(triangles))
    start = vertex = next(iter(following))
    length = 0
    while length == 0 or vertex != start:
        vertex = following[vertex]
        length += 1
    assert length == len(following)
    edges = len(np.unique(np.sort(directed, axis=1), axis=0))
    assert len(arrays["mean"]) - edges + len(triangles) == 1
    assert set(np.unique(triangles)) == set(range(len(arrays["mean"])))


def test_boundary_is_smooth(arrays: dict[str, np.ndarray]) -> None:
    following = dict(boundary_edges(arrays["triangles"]))
    mean = arrays["mean"].astype(float)
    turns = []
    for a, b in following.items():
        into, out = mean[b] - mean[a], mean[following[b]] - mean[b]
        turns.append(np.degrees(np.arccos(into @ out / np.linalg.norm(into) / np.linalg.norm(out))))
    assert np.percentile(turns, 95) < 20
    assert max(turns) < 45


def test_mirror_is_an_exact_involution(arrays: dict[str, np.ndarray]) -> None:
    mirror, mean = arrays["mirror"], arrays["mean"]
    assert np.array_equal(mirror[mirror], np.arange(len(mirror)))
    assert np.abs(mean[mirror] * REFLECT_X - mean).max() < 1e-4
    triangles = {tuple(sorted(t)) for t in arrays["triangles"].tolist()}
    assert {tuple(sorted(t)) for t in mirror[arrays["triangles"]].tolist()} == triangles
    assert np.array_equal(
        mirror[arrays["landmarks68"]][[36, 45, 48, 54, 0, 16, 8]],
        arrays["landmarks68"][[45, 36, 54, 48, 16, 0, 8]],
    )


def test_the_uv_map_has_no_fold_and_is_symmetric(arrays: dict[str, np.ndarray]) -> None:
    uv, triangles = arrays["uv"].astype(float), arrays["triangles"]
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (c - a)[:, 0] * (b - a)[:, 1]
    assert (area > 0).all()
    assert np.abs(uv[arrays["mirror"]] * [-1, 1] + [1, 0] - uv).max() < 1e-6
    assert uv.min() > 0.5 / 224
    assert uv.max() < 1 - 0.5 / 224
    surface = np.linalg.norm(
        np.cross(*(arrays["mean"].astype(float)[triangles[:, k]] - arrays["mean"][triangles[:, 0]] for k in (1, 2))),
        axis=1,
    )
    skin = (arrays["mask_eyes"] < 0.5)[triangles].all(1) & (arrays["mask_mouth"] < 0.5)[triangles].all(1)
    low, high = np.percentile((area / surface)[skin], [5, 95])
    assert high / low < 3


def test_origin_and_axes(arrays: dict[str, np.ndarray]) -> None:
    mean, table = arrays["mean"], arrays["landmarks68"]
    assert np.linalg.norm(mean.mean(0)) < 30
    assert mean[table[45], 0] > mean[table[36], 0]
    assert mean[table[27], 1] > mean[table[8], 1]
    assert mean[table[30], 2] > mean[table[36], 2]


def lip_gaps(shape: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Height of the upper over the lower inner lip at the middle and the quarters, in millimetres."""
    table = arrays["landmarks68"]
    return shape[table[[61, 62, 63]], 1] - shape[table[[67, 66, 65]], 1]


def test_neutral_mouth_is_closed_and_opens(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    mean, actions = arrays["mean"].astype(float), arrays["expression_basis"].astype(float)
    names = json.loads(metadata["expression_names"])
    assert np.abs(lip_gaps(mean, arrays)).max() < 0.1
    rng = np.random.default_rng(0)
    person = np.tensordot(rng.normal(size=160), arrays["identity_basis"].astype(float), 1)
    assert np.abs(lip_gaps(mean + person, arrays)).max() < 0.3  # measured 0.1: half precision of the basis
    jaw, close = actions[names.index("jawOpen")], actions[names.index("mouthClose")]
    assert lip_gaps(mean + jaw, arrays)[1] > 20
    assert np.abs(lip_gaps(mean + jaw + close, arrays)).max() < 0.3


def lid_depth_over_eye(shape: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """How far the skin lies before each vertex of the left eye cap, in millimetres; -inf where it is bare."""
    eyes = (arrays["mask_eyes"] > 0.5) & (arrays["mean"][:, 0] > 0)
    ball = shape[eyes]
    triangles = arrays["triangles"]
    skin = triangles[~(arrays["mask_eyes"] > 0.5)[triangles].any(1)]
    near = np.linalg.norm(shape[skin].mean(1)[:, :2] - ball.mean(0)[:2], axis=1) < 25
    a, b, c = (shape[skin[near][:, k]] for k in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    p = ball[:, None]
    wb = ((p - a)[..., 0] * (c - a)[:, 1] - (p - a)[..., 1] * (c - a)[:, 0]) / area
    wc = ((b - a)[:, 0] * (p - a)[..., 1] - (b - a)[:, 1] * (p - a)[..., 0]) / area
    inside = (wb >= 0) & (wc >= 0) & (wb + wc <= 1)
    depth = a[:, 2] + wb * (b - a)[:, 2] + wc * (c - a)[:, 2] - ball[:, 2, None]
    return np.where(inside, depth, -np.inf).max(1)


def test_openings_slide_over_the_eyes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    names = json.loads(metadata["expression_names"])
    mean = arrays["mean"].astype(float)
    blink = arrays["expression_basis"][names.index("eyeBlinkLeft")].astype(float)
    assert (lid_depth_over_eye(mean, arrays) > 0).mean() < 0.3
    closed = lid_depth_over_eye(mean + blink, arrays)
    assert (closed > 0).mean() > 0.97
    # What the lid covers it covers from outside: the eye shows through nowhere.
    covered = lid_depth_over_eye(mean + 0.5 * blink, arrays)
    assert (covered[np.isfinite(covered)] < -0.3).mean() < 0.03


def test_expressions_are_arkits_and_symmetric(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    names = json.loads(metadata["expression_names"])
    assert len(names) == len(set(names)) == len(arrays["expression_basis"]) == 52
    assert names[0] == "eyeBlinkLeft"
    assert names[-1] == "tongueOut"
    basis, mirror = arrays["expression_basis"].astype(float), arrays["mirror"]
    for name, action in zip(names, basis, strict=True):
        other = name.replace("Left", "RIGHT").replace("Right", "Left").replace("RIGHT", "Right")
        assert np.abs(basis[names.index(other)][mirror] * REFLECT_X - action).max() < 0.05, name
        assert (np.abs(action).max() > 1) == (name != "tongueOut"), name


def test_sites_lie_on_skin(arrays: dict[str, np.ndarray]) -> None:
    weights = arrays["mediapipe_barycentrics"]
    assert weights.shape == (468, 3)
    assert np.abs(weights.sum(1) - 1).max() < 1e-4
    assert weights.min() >= 0
    strips = arrays["contour_candidates"]
    for k in range(17):
        strip = strips[k][strips[k] >= 0]
        assert arrays["landmarks68"][k] in strip
        assert len(strip) >= 6
        steps = np.linalg.norm(np.diff(arrays["mean"][strip], axis=0), axis=1)
        assert steps.max() < 16


def test_population_agrees_with_published_anthropometry(
    arrays: dict[str, np.ndarray], anthropometry: ModuleType
) -> None:
    measures = anthropometry.place_measures(
        arrays["mean"].astype(float),
        triangles=arrays["triangles"],
        mirror=arrays["mirror"],
        eye=arrays["mask_eyes"] > 0.5,
        hidden=arrays["mask_mouth"] > 0.5,
        table=arrays["landmarks68"],
    )
    rng = np.random.default_rng(1)
    used = np.unique(measures.ends)
    basis = arrays["identity_basis"][:, used].astype(float)
    people = arrays["mean"][used].astype(float) + np.tensordot(rng.normal(size=(4000, 160)), basis, 1)
    ends = np.searchsorted(used, measures.ends)
    dimensions = anthropometry.Measures(ends).of(people)
    for k, target in enumerate(anthropometry.NIOSH):
        mean, sd = dimensions[:, k].mean(), dimensions[:, k].std()
        assert abs(mean - target.mean) < 0.5 * target.sd, (target.name, mean, target.mean)
        assert 0.75 < sd / target.sd < 1.25, (target.name, sd, target.sd)


def test_depths_of_the_mean(arrays: dict[str, np.ndarray]) -> None:
    z = arrays["mean"][arrays["landmarks68"], 2]
    eyes = z[[36, 45]].mean()
    assert abs(z[30] - eyes - 45) < 2.5
    assert abs(z[8] - eyes - 18) < 2.5
    assert abs(z[[2, 14]].mean() - eyes + 41) < 3
