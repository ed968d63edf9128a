"""From photographs to albedo: shared light out, shine out, hair out, both halves averaged, gaps filled."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import portraits as photos
from PIL import Image, ImageDraw
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from shading import Y00, seen_from
from skin_optics import lab
from skin_regions import FaceMesh, SkinRegions

from mien.morphable.landmark_tables import IBUG_INNER_LIPS, IBUG_LEFT_EYE, IBUG_OUTER_LIPS, IBUG_RIGHT_EYE
from mien.perception.windows import LUMA_709

# The Canadian set's cast exaggerates differences of colour: red cheeks become redder than London's by a third.
CANADA_CHROMA = 0.7
# A typical light skin, sRGB-encoded, that the mean of the white participants is set to: their photographs under
# neutral balance give a similar lightness and a slightly cooler hue than spectrophotometers do.
LIGHT_SKIN = np.array([0.785, 0.620, 0.538])


@dataclass(frozen=True)
class RealSkin:
    """What N people's skin looked like; logarithms of linear sRGB."""

    tone: np.ndarray
    """(N, 3) log colour of the plain skin."""
    detail: np.ndarray
    """(N, V, 3) log of the colour relative to the tone, mirror-symmetric, complete; meaningless on the eyes."""
    iris: np.ndarray
    """(N, 3) linear colour."""
    sclera: np.ndarray
    """(N, 3) linear colour."""
    female: np.ndarray
    """(N,) bool"""
    lightness: np.ndarray
    """(N,) CIELAB L* of the tone."""


def neighbour_laplacian(mesh: FaceMesh, strength: np.ndarray | None = None) -> csr_matrix:
    """Graph Laplacian (V, V) with weights that fall with edge length, mean degree one, times `strength` (V,)."""
    a = mesh.triangles[:, [0, 1, 2]].ravel()
    b = mesh.triangles[:, [1, 2, 0]].ravel()
    length = np.linalg.norm(mesh.vertices[a] - mesh.vertices[b], axis=1)
    weight = 1 / np.maximum(length, 0.3)
    count = len(mesh.vertices)
    graph = csr_matrix((weight, (a, b)), (count, count))
    graph = graph.maximum(graph.T)
    graph = graph / (graph.sum() / count)
    if strength is not None:
        graph = diags(np.sqrt(strength)) @ graph @ diags(np.sqrt(strength))
    return diags(np.asarray(graph.sum(1)).ravel()) - graph


def control_points(mesh: FaceMesh, people: list[photos.Portrait], mirror189: np.ndarray) -> np.ndarray:
    """Front-view model positions (189, 2) of the template, its lips and lids snapped to the model's own edges."""
    placed = photos.template_on_model(people, mesh.mesh468[:, :2], mirror189)
    outer = _polyline(mesh.vertices[mesh.landmarks68[IBUG_OUTER_LIPS], :2])
    inner = _polyline(mesh.vertices[mesh.landmarks68[IBUG_INNER_LIPS], :2])
    rims = {side: _rim(mesh, side) for side in (-1, 1)}
    upper, middle, lower = range(87, 94), range(94, 104), range(104, 109)
    for indices, curve in ((upper, outer), (lower, outer), (middle, inner)):
        for k in indices:
            placed[k] = curve[cKDTree(curve).query(placed[k])[1]]
    for k in photos.LIDS:
        rim = rims[1 if placed[k, 0] > 0 else -1]
        placed[k] = rim[cKDTree(rim).query(placed[k])[1]]
    return 0.5 * (placed + placed[mirror189] * [-1, 1])


def _polyline(points: np.ndarray) -> np.ndarray:
    closed = np.concatenate([points, points[:1]])
    share = np.linspace(0, 1, 20, endpoint=False)[:, None]
    return np.concatenate([a + share * (b - a) for a, b in pairwise(closed)])


def _rim(mesh: FaceMesh, side: int) -> np.ndarray:
    """Points (K, 2) along the lid's edge, seen from the front; `side` is 1 for the subject's left eye."""
    marks = mesh.landmarks68[IBUG_LEFT_EYE if side > 0 else IBUG_RIGHT_EYE]
    return _polyline(mesh.vertices[marks, :2])


def photographs_on_mesh(
    mesh: FaceMesh, people: list[photos.Portrait], mirror189: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear colours (N, V, 3) under neutral balance, and how far each can be trusted (N, V)."""
    template = control_points(mesh, people, mirror189)
    kept = [k for group in (photos.LIDS, photos.BROWS, photos.LIPS, photos.NOSE) for k in group]
    far = cKDTree(template[kept]).query(mesh.mesh468[:, :2])[0] > 5.0
    far &= photos.agreeing_points(people, mesh.mesh468[:, :2])
    source = np.concatenate([mesh.mesh468[far, :2], template[kept]])
    normals = mesh.normals
    facing = seen_from(mesh.vertices, mesh.triangles, normals, np.array([0.0, 0.0, 1.0]))
    trust = facing * np.clip((normals[:, 2] - 0.28) / 0.35, 0, 1)
    colours, weights = [], []
    for person in people:
        target = np.concatenate([person.mesh[far, :2], person.template[kept]])
        at = photos.warp(source, target, smoothing=2e-4)(mesh.vertices[:, :2])
        backdrop = photos.background(person)
        colours.append(photos.sample(person.pixels, at) * backdrop[1] / backdrop)
        weights.append(trust * _below_hairline(person, at))
    return np.array(colours), np.array(weights)


def _below_hairline(person: photos.Portrait, at: np.ndarray) -> np.ndarray:
    """Weight (V,): one inside the face's outline of hairline and jaw, zero in the hair."""
    line = person.template[list(photos.HAIRLINE)]
    height = np.linalg.norm(person.template[129] - person.template[139])
    jaw = person.template[125:134]
    middle = jaw.mean(0)
    outline = np.concatenate([line + np.array([0, 0.045 * height]), middle + 0.94 * (jaw[::-1] - middle)])
    size = person.pixels.shape[1::-1]
    canvas = Image.new("L", size, 0)
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline], fill=1)
    column, row = np.floor(at).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < size[0]) & (row < size[1])
    return inside * np.asarray(canvas, float)[row.clip(0, size[1] - 1), column.clip(0, size[0] - 1)]


def fit_light(
    relative: np.ndarray, weight: np.ndarray, transfer: np.ndarray, *, prior: np.ndarray | None, firmness: float
) -> np.ndarray:
    """Nine harmonic coefficients that explain lightness `relative` (V,), highlights and hair discounted."""
    if prior is None:
        prior = np.zeros(9)
        prior[0] = 1 / Y00
    scale = np.sqrt((weight[:, None] * transfer**2).sum(0) / weight.sum())
    light, trust = prior.copy(), weight.copy()
    for _ in range(12):
        normal = (transfer * trust[:, None]).T @ transfer / trust.sum() + firmness * np.diag(scale**2)
        right = (transfer * trust[:, None]).T @ relative / trust.sum() + firmness * scale**2 * prior
        light = np.linalg.solve(normal, right)
        residual = relative - transfer @ light
        # shine only ever adds light, so what lies above is distrusted sooner than what lies below
        spread = np.where(residual > 0, 0.08, 0.14)
        trust = weight / (1 + (residual / spread) ** 2)
    return light


def without_light(
    colours: np.ndarray,
    weights: np.ndarray,
    people: list[photos.Portrait],
    transfer: np.ndarray,
    regions: SkinRegions,
) -> np.ndarray:
    """Divide out each set's light, adapted a little to each person."""
    luma = colours @ LUMA_709
    level = np.array([_weighted_median(luma[i], weights[i] * regions.plain) for i in range(len(people))])
    relative = luma / level[:, None]
    collections = np.array([p.collection for p in people])
    bare = np.empty_like(colours)
    for name in dict.fromkeys(collections):
        members = np.flatnonzero(collections == name)
        mass = (weights[members] * regions.plain).sum(0)
        common = np.array([_weighted_median(relative[members, v], weights[members, v]) for v in range(luma.shape[1])])
        shared = fit_light(common, mass / len(members), transfer, prior=None, firmness=0.03)
        for i in members:
            own = fit_light(relative[i], weights[i] * regions.plain, transfer, prior=shared, firmness=0.12)
            bare[i] = colours[i] / np.clip(transfer @ own, 0.55, 1.6)[:, None]
    return bare


def without_shine(detail: np.ndarray, regions: SkinRegions, *, knee: float = 0.06) -> np.ndarray:
    """Press down what is brighter than `knee` above the person's tone; `detail` (N, V, 3) is the log of colour/tone."""
    light = detail @ LUMA_709
    excess = np.maximum(light - knee, 0) * (1 - regions.eyes)
    chroma = detail - light[..., None]
    return (light - 0.75 * excess)[..., None] + chroma


def with_own_chroma(detail: np.ndarray, regions: SkinRegions, *, knee: float = 0.04) -> np.ndarray:
    """Give highlights, which are whiter than skin, the chroma of the person's tone (lips: of the person's lips)."""
    light = detail @ LUMA_709
    chroma = detail - light[..., None]
    lips = regions.lips > 0.6
    usual = np.zeros_like(detail)
    level = np.zeros_like(light)
    darker = light[:, lips] <= np.quantile(light[:, lips], 0.5, axis=1, keepdims=True)
    share = darker / darker.sum(1, keepdims=True)
    usual[:, lips] = (chroma[:, lips] * share[..., None]).sum(1)[:, None]
    level[:, lips] = (light[:, lips] * share).sum(1)[:, None]
    excess = np.maximum(light - level - knee, 0) * (1 - regions.eyes)
    keep = np.exp(-excess / 0.10)[..., None]
    own = usual + (chroma - usual) * keep
    pressed = np.where(lips, level + np.minimum(light - level, knee) + 0.25 * excess, light)
    return pressed[..., None] + own


def even_out(
    detail: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    *,
    women: np.ndarray,
    covariate: np.ndarray,
    laplacian: csr_matrix,
    regions: SkinRegions,
) -> np.ndarray:
    """Take out what the light's model missed: on average over women, bare skin is the same everywhere.

    The remaining trend, one map per set of photographs (`groups`, (N,)) and one that goes with the tone (shine grows
    on dark skin), is estimated where skin is plain or bearded in men, smoothed, continued below the features and
    subtracted from everybody. The redness of nose and cheeks and the colour below the eyes stay.
    """
    even = np.clip(regions.plain + regions.beard, 0, 1) * (regions.lids < 0.4) * (1 - regions.under_eye)
    design = np.stack([(groups == name).astype(float) for name in dict.fromkeys(groups)] + [covariate], 1)
    mass = weights * women[:, None] * even
    maps = np.zeros((detail.shape[1], design.shape[1], 3))
    for v in np.flatnonzero(mass.sum(0) > 5):
        scaled = design * mass[:, v : v + 1]
        normal = scaled.T @ design + 0.5 * np.eye(design.shape[1])
        maps[v] = np.linalg.solve(normal, scaled.T @ np.clip(detail[:, v], -0.5, 0.5))
    trusted = np.clip(mass.sum(0) / 15, 0, 1)
    system = diags(trusted + 1e-4) + 4.0 * laplacian  # spreads over about two edges
    smooth = splu(system.tocsc()).solve((maps * trusted[:, None, None]).reshape(len(maps), -1)).reshape(maps.shape)
    light = smooth @ LUMA_709
    coloured = np.clip(regions.nose + 0.7 * regions.cheeks + regions.under_eye + regions.lips + regions.lids, 0, 1)
    trend = light[..., None] + (smooth - light[..., None]) * (1 - coloured)[:, None, None]
    return detail - np.einsum("nk,vkc->nvc", design, trend)


def real_skin(
    mesh: FaceMesh,
    people: list[photos.Portrait],
    mirror189: np.ndarray,
    *,
    transfer: np.ndarray,
    regions: SkinRegions,
) -> RealSkin:
    """Run the whole chain of this module."""
    colours, weights = photographs_on_mesh(mesh, people, mirror189)
    openness = transfer[:, 0] / Y00
    weights = weights * np.clip((openness - 0.30) / 0.15, 0, 1)
    bare = without_light(colours, weights, people, transfer, regions)
    count = len(people)
    plain = weights * regions.plain
    tone = np.array([[_weighted_median(bare[i, :, k], plain[i]) for k in range(3)] for i in range(count)])

    london = np.array([p.collection == photos.LONDON for p in people])
    gain = _common_scale(tone, london, np.array([p.ethnicity == "white" for p in people]))
    tone, bare = tone * gain, bare * gain[:, None]
    irises = [photos.irises(p) for p in people]
    balance = [photos.background(p) for p in people]
    iris, sclera = (
        np.array([pair[k] / (b / b[1]) for pair, b in zip(irises, balance, strict=True)]) * gain for k in (0, 1)
    )

    detail = np.log(np.maximum(bare, 0.002)) - np.log(tone)[:, None]
    laplacian = neighbour_laplacian(mesh)
    women = np.array([p.sex == "female" for p in people])
    lightness = lab(tone)[:, 0]
    detail = with_own_chroma(detail, regions)
    weights = weights * ~((detail @ LUMA_709 < -0.22) & (regions.hair > 0.5))
    detail = even_out(
        detail,
        weights,
        np.array([p.collection for p in people]),
        women=women,
        covariate=(lightness - 58.0) / 13.0,
        laplacian=laplacian,
        regions=regions,
    )
    plain = weights * regions.plain
    for i in range(count):
        detail[i] -= [_weighted_median(detail[i, :, k], plain[i]) for k in range(3)]
    detail = without_shine(detail, regions)
    detail[~london] -= (1 - CANADA_CHROMA) * (detail - (detail @ LUMA_709)[..., None])[~london]
    detail, weights = _reject(detail, weights, regions)
    detail, weights = _fold(detail, weights, mesh.mirror)
    off = np.maximum(regions.eyes, regions.mouth)
    filled = _complete(detail, weights * (1 - off), mesh, regions)
    filled = _softer_eyes(filled, regions)
    # what hair has left at temples and forehead after rejection is a faint shadow; bare skin is not dark there
    dark = np.minimum(filled @ LUMA_709 + 0.02, 0) * regions.hair * (1 - regions.brows)
    filled = filled - dark[..., None]
    return RealSkin(
        tone=np.log(tone),
        detail=filled.astype(np.float32),
        iris=iris,
        sclera=sclera,
        female=women,
        lightness=lightness,
    )


def _common_scale(tone: np.ndarray, london: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Gains (N, 3) that bring both sets' white participants to typical light skin.

    London: one gain per channel. Canada, where cast and exposure wander from photo to photo: the same, and then
    each person's deviation is shrunk to London's spread.
    """
    target = np.log(photos.decode(LIGHT_SKIN))
    logs = np.log(tone)
    gain = np.zeros_like(tone)
    gain[london] = target - logs[london & white].mean(0)
    spread = np.sqrt(np.square(logs[london & white] - logs[london & white].mean(0)).mean(0))
    middle = logs[~london].mean(0)
    wander = np.sqrt(np.square(logs[~london] - middle).mean(0))
    shrunk = target + (logs[~london] - middle) * np.minimum(spread / wander, 1)
    chroma = shrunk - (shrunk @ LUMA_709)[:, None] - (target - target @ LUMA_709)
    gain[~london] = shrunk - 0.5 * chroma - logs[~london]
    return np.exp(gain)


def _reject(detail: np.ndarray, weights: np.ndarray, regions: SkinRegions) -> tuple[np.ndarray, np.ndarray]:
    """Distrust what is far from the population at that vertex: hair, jewellery, shadows, paint."""
    middle = np.median(detail, 0)
    spread = np.maximum(1.4826 * np.median(np.abs(detail - middle), 0), 0.05)
    far = (np.abs(detail - middle) / spread).max(-1)
    light = detail @ LUMA_709
    hair = (light < np.where(regions.hair > 0.5, -0.16, -0.45)) & ((regions.plain > 0.3) | (regions.hair > 0.5))
    weights = weights * np.clip(2.0 - far / 3.0, 0, 1) * (1 - hair)
    return np.clip(detail, middle - 5 * spread, middle + 5 * spread), weights


def _fold(detail: np.ndarray, weights: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average left and right; where they disagree, the side nearer to the population's median counts more."""
    middle = np.median(0.5 * (detail + detail[:, mirror]), 0)
    distance = np.abs(detail - middle).sum(-1)
    score = weights * np.exp(-((distance / 0.45) ** 2)) + 1e-6 * weights
    total = np.maximum(score + score[:, mirror], 1e-12)
    folded = (score[..., None] * detail + score[:, mirror, None] * detail[:, mirror]) / total[..., None]
    return folded, np.maximum(weights, weights[:, mirror])


def _complete(detail: np.ndarray, weights: np.ndarray, mesh: FaceMesh, regions: SkinRegions) -> np.ndarray:
    """Smooth where data are good, and let the detail die away within a few edges where there are none.

    Colour is smoothed more than lightness, as the eye does: a camera's colour noise would come out as blotches.
    Lips, brows and lids keep their edges.
    """
    feature = np.clip(regions.lips + regions.brows + (regions.lids > 0.3) + (regions.plain < 0.02), 0, 1)
    light_rule = neighbour_laplacian(mesh, 0.08 + 0.25 * (1 - feature))
    colour_rule = neighbour_laplacian(mesh, 0.15 + 6.0 * (1 - feature))
    result = np.empty_like(detail)
    for i, (one, weight) in enumerate(zip(detail, weights, strict=True)):
        light = one @ LUMA_709
        base = diags(weight + 2e-3)
        smooth = splu((base + light_rule).tocsc()).solve(weight * light)
        chroma = splu((base + colour_rule).tocsc()).solve(weight[:, None] * (one - light[:, None]))
        result[i] = smooth[:, None] + chroma
    return result


def _softer_eyes(detail: np.ndarray, regions: SkinRegions) -> np.ndarray:
    """Take out half of the mean darkness below the eyes: much of it is the socket's shade, not pigment."""
    common = (detail @ LUMA_709).mean(0)
    shade = 0.55 * np.minimum(common, 0) * np.clip(regions.under_eye, 0, 1) * (1 - regions.brows)
    return detail - shade[None, :, None]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    if mass[-1] <= 0:
        return float(np.median(values))
    return float(values[order[np.searchsorted(mass, 0.5 * mass[-1])]])
