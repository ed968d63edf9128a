"""Masks the visible skin in a face crop: the oval of the mesh without eyes, open mouth and occluders.

Masks, glasses, hands and other things in front of the face come from the detection (`mien.perception.occluders`). Hair
and what they leave is separated from skin by colour, without training. A Gaussian
mixture of log brightness and log colour ratios is fitted to the pixels of the face. A component counts as skin in
proportion to its share of cheeks and nose. So the skin colours of each person come from their own cheeks, in light and
in shadow, in colour or in grey. A fringe in the colour of the skin is recognised by its strands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from mien.morphable.landmark_tables import (
    MEDIAPIPE_BEARD,
    MEDIAPIPE_BROWS,
    MEDIAPIPE_CHEEKS,
    MEDIAPIPE_EYES,
    MEDIAPIPE_FOREHEAD,
    MEDIAPIPE_INNER,
    MEDIAPIPE_LIPS,
    MEDIAPIPE_MOUTH,
    MEDIAPIPE_NOSE,
    MEDIAPIPE_NOSE_BRIDGE,
    MEDIAPIPE_OVAL,
    MEDIAPIPE_TOP,
    MEDIAPIPE_UPPER_FACE,
)
from mien.perception.crops import Crop
from mien.perception.face_detection import FaceDetection
from mien.perception.windows import PhotoPyramid
from mien.quality import CoveredShares
from mien.rasterizer.cpu import native
from mien.typing import Float, Tensor

# The mesh ends below the hairline; the forehead is extended by this share of the distance from nose bridge to mesh top.
FOREHEAD_EXTENSION = 0.15
SUPERSAMPLING = 3
# Luminance below this (of 1) is noise in the colour ratios.
LOG_FLOOR = 0.03
COMPONENTS = 4
ITERATIONS = 10
PIXELS_TO_FIT = 2500
# Share of a component among the pixels of cheeks and nose, divided by its share of the whole face: below the first
# value the component is not skin, above the second it is.
SKIN_SHARE = (0.2, 0.55)
# Smallest standard deviations of a component: log brightness, log red/green, log blue/green.
SPREAD_FLOOR = np.array([0.10, 0.05, 0.05])
# Of the probability of skin, in which hair and skin alternate within few pixels: below the first value skin is 0, and
# it rises to 1 over the second.
SKIN_PROBABILITY = (0.35, 0.3)
SMOOTHING_SHARE = 0.018
BEARD_WEIGHT = 0.7
# Share of the lips from which on something covers the mouth.
LIPS_COVERED = 0.5
# Smallest share of the oval that counts as covered: less is hair or background at its border.
LEAST_COVERED = 0.003
# What covers the face grows by this share of the crop's side, 3 % of a face: a rim in the colour of a mask would tint
# the skin beside it.
COVERED_MARGIN = 0.018
# Smallest open part of cheeks and nose from which alone the colours of skin are taken.
LEAST_SEEDS = 0.6
# The lower half of the face is a beard if at least this share of each side is covered, and the sides differ by less
# than the second value.
BEARD_COVERED, BEARD_ASYMMETRY = 0.35, 0.3
# Strands of hair hang down, so brightness varies across the face; forehead wrinkles make it vary along the face. Limits
# of roughness across the face, in multiples of the roughness of the cheeks' rougher quarter: from the first it may be
# hair, from the second it is. Chosen on 80 photos of Helen and AFW.
STRAND_ROUGHNESS = (1.5, 3.0)
STRAND_QUANTILE = 0.75
STRAND_DETREND_SHARE, STRAND_BLUR_SHARE = 0.04, 0.03
ABOVE_BROWS_SHARE = 0.03
ROUGHNESS_FLOOR = 2e-3


@dataclass(frozen=True)
class FaceParts:
    """Soft masks of a crop, 0 to 1."""

    skin: Float[Tensor, "S S"]
    """Visible skin, with brows and lips."""
    eyes: Float[Tensor, "S S"]
    """The openings of the eyes."""
    mouth: Float[Tensor, "S S"]
    """The open mouth."""
    oval: Float[Tensor, "S S"]
    """The whole face up to the hairline, with occluders."""
    inner: Float[Tensor, "S S"]
    """The area around eyes, nose and mouth, with occluders."""
    covered: Float[Tensor, "S S"]
    """What a mask, glasses, a hand or another thing hides of the oval; hair that falls from above is not part of it."""
    covered_shares: CoveredShares
    """What is found of it before it is widened by a margin, as shares of the parts of the face."""
    cut_off: float
    """Share of the oval that is outside the photo."""

    @property
    def face(self) -> Float[Tensor, "S S"]:
        """Pixels that belong to the texture of a face: visible skin, and the whole inner part.

        In the inner part, pixels that are not skin are eyes, mouth or beard, unless something covers them; on the
        forehead and near the outline they are hair or background.
        """
        return torch.maximum(self.skin, self.inner * (1 - self.covered))


def face_mask(pixels: np.ndarray, detection: FaceDetection, crop: Crop) -> Float[Tensor, "S S"]:
    """Return the soft mask of the visible skin in a crop, see `face_parts`."""
    return face_parts(pixels, detection, crop).skin


def face_parts(pixels: np.ndarray, detection: FaceDetection, crop: Crop) -> FaceParts:
    """Segment a crop of a photo into visible skin, eyes, open mouth and inner face.

    Args:
        pixels: The photo, uint8 (H, W, 3).
        detection: The face, in pixels of the photo.
        crop: The crop to segment.

    Returns:
        Soft masks of the crop's size; not differentiable.
    """
    photo = PhotoPyramid(pixels, device=torch.device("cpu"))
    picture, visible = photo.sample(crop.photo_from_crop.numpy(), crop.size)
    mesh = crop.to_crop(torch.from_numpy(detection.landmarks468_px[:, :2]).double()).numpy()
    inside = visible.numpy()

    def fill(*parts: tuple[int, ...]) -> np.ndarray:
        return _fill([mesh[list(part)] for part in parts], crop.size)

    outline = _fill([_with_forehead(mesh)], crop.size)
    oval = outline * inside
    eyes, mouth, lips = fill(*MEDIAPIPE_EYES), fill(MEDIAPIPE_MOUTH), fill(MEDIAPIPE_LIPS)
    hidden = _hidden(detection, crop, oval=oval, mouth=mouth, lips=lips)
    covered = _with_margin(hidden) * oval
    open_to_view = 1 - covered
    features = np.maximum(lips, fill(*MEDIAPIPE_BROWS))
    bare = oval * (1 - np.maximum(eyes, features)) * open_to_view
    colour = _features(picture.permute(1, 2, 0).numpy())
    cheeks, middle = fill(*MEDIAPIPE_CHEEKS) * inside, fill(*MEDIAPIPE_CHEEKS, MEDIAPIPE_NOSE) * inside
    skin = _skin_by_colour(colour, bare, _seeds(middle, fill(MEDIAPIPE_UPPER_FACE) * bare, covered))
    skin = skin * (1 - _strands(colour[..., 0], mesh, cheeks * open_to_view, oval=oval))
    skin = np.where(features > 0.5, _skin_around(skin, bare), skin)
    skin = np.maximum(skin, _beard(skin, [fill(half) for half in MEDIAPIPE_BEARD], lips, covered))
    skin = skin * oval * (1 - eyes) * (1 - mouth) * open_to_view
    shares = CoveredShares()
    if hidden.any():
        above_brows = _above_brows(mesh, _upright(mesh), crop.size)
        areas = (oval * (1 - above_brows), eyes, fill(MEDIAPIPE_NOSE), lips, oval * above_brows)
        shares = CoveredShares(*(_share(hidden, area) for area in areas))
    return FaceParts(
        skin=_tensor(skin),
        eyes=_tensor(eyes),
        mouth=_tensor(mouth),
        oval=_tensor(oval),
        inner=_tensor(fill(MEDIAPIPE_INNER) * inside),
        covered=_tensor(covered),
        covered_shares=shares,
        cut_off=1 - _share(inside, outline),
    )


def _tensor(mask: np.ndarray) -> Float[Tensor, "S S"]:
    return torch.from_numpy(np.ascontiguousarray(mask, np.float32))


def _share(found: np.ndarray, area: np.ndarray) -> float:
    """Mean of one mask over another; 0 if the other is empty."""
    return round(float((found * area).sum()) / max(float(area.sum()), 1e-6), 4)


def _upright(mesh: np.ndarray) -> np.ndarray:
    """Unit vector from the nose bridge to the top of the forehead, crop pixels."""
    up = mesh[MEDIAPIPE_TOP] - mesh[MEDIAPIPE_NOSE_BRIDGE]
    return up / max(float(np.linalg.norm(up)), 1e-6)


def _hidden(
    detection: FaceDetection, crop: Crop, *, oval: np.ndarray, mouth: np.ndarray, lips: np.ndarray
) -> np.ndarray:
    """Return where something hides the face (H, W).

    The dark opening of a mouth is no occluder, if the lips around it are seen.
    """
    if detection.occluders is None:
        return np.zeros_like(mouth)
    hidden = detection.occluders.in_crop(crop) * oval
    if _share(hidden, oval) < LEAST_COVERED:
        return np.zeros_like(mouth)
    if _share(hidden, lips * (1 - mouth)) < LIPS_COVERED:
        hidden = hidden * (1 - mouth)
    return hidden


def _with_margin(hidden: np.ndarray) -> np.ndarray:
    """Return what is hidden (H, W), wider by the margin."""
    radius = max(1, round(COVERED_MARGIN * len(hidden)))
    wider = torch.nn.functional.max_pool2d(_tensor(hidden)[None], 2 * radius + 1, stride=1, padding=radius)
    return wider[0].numpy()


def _seeds(middle: np.ndarray, upper: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return the area (H, W) whose colours are those of skin: the open part of cheeks and nose.

    Under a mask little of them is open; then the skin around the eyes and above them counts too.
    """
    seeds = middle * (1 - covered)
    if seeds.sum() >= LEAST_SEEDS * middle.sum():
        return seeds
    return np.maximum(seeds, upper)


def _skin_by_colour(colour: np.ndarray, bare: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the soft mask (H, W) of skin colours; `bare` is the area to classify, `seeds` are cheeks and nose."""
    low, width = SKIN_PROBABILITY
    return np.clip((_smooth(_skin_probability(colour, bare, seeds), len(bare)) - low) / width, 0, 1)


def _skin_around(skin: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """Return the mask for lips and brows, whose own colours are not skin: they count if the skin around is visible."""
    size = len(skin)
    around = _smooth(skin * bare, size, times=4) / np.maximum(_smooth(bare, size, times=4), 1e-3)
    return np.clip(2 * around, 0, 1)


def _fill(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Rasterise polygons (crop pixels) with antialiased edges."""
    filled = np.zeros((size, size), np.float32)
    corners = np.concatenate(polygons)
    # Only the box around the polygons is rasterised, because most are small.
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, size - 1)
    wide, high = (np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, size) - low).tolist()
    canvas = Image.new("L", (wide * SUPERSAMPLING, high * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        # Pillow's coordinates refer to pixel centres, hence half a supersampled pixel less.
        draw.polygon([tuple(p) for p in ((polygon - low) * SUPERSAMPLING - 0.5).tolist()], fill=255)
    filled[low[1] : low[1] + high, low[0] : low[0] + wide] = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255
    return filled


def _with_forehead(mesh: np.ndarray) -> np.ndarray:
    """Return the oval with its upper part moved up to the hairline."""
    up = (mesh[MEDIAPIPE_TOP] - mesh[MEDIAPIPE_NOSE_BRIDGE]) * FOREHEAD_EXTENSION
    lifted = mesh.copy()
    share = np.array([0.35, 0.7, 0.9, 1.0, 1.0, 1.0, 0.9, 0.7, 0.35])
    lifted[list(MEDIAPIPE_FOREHEAD)] += share[:, None] * up
    return lifted[list(MEDIAPIPE_OVAL)]


def _features(picture: np.ndarray) -> np.ndarray:
    """Return log brightness, log red/green and log blue/green (H, W, 3)."""
    logs = np.log(picture + LOG_FLOOR)
    return np.stack([logs.mean(2), logs[..., 0] - logs[..., 1], logs[..., 2] - logs[..., 1]], 2)


def _smooth(values: np.ndarray, size: int, *, times: int = 2, share: float = SMOOTHING_SHARE) -> np.ndarray:
    """Blur by a repeated box filter whose side is a share of the crop's."""
    means = np.empty((size, size), np.float32)
    native().box_means(np.ascontiguousarray(values, np.float32), max(1, round(size * share / 2)), times, means)
    return means


def _skin_probability(colour: np.ndarray, face: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the probability of skin per pixel (H, W); ones if there are too few pixels to fit the mixture."""
    chosen, seed_chosen = colour[face > 0.5], colour[seeds > 0.5]
    if len(chosen) < 50 or len(seed_chosen) < 20:
        return np.ones(face.shape, np.float32)
    chosen = chosen[:: 1 + len(chosen) // PIXELS_TO_FIT]
    seed_chosen = seed_chosen[:: 1 + len(seed_chosen) // PIXELS_TO_FIT]
    mixture = _fit_mixture(chosen, seed_chosen)
    share_of_face = mixture.responsibilities(_monomials(chosen)).mean(0).numpy()
    share_of_seeds = mixture.responsibilities(_monomials(seed_chosen)).mean(0).numpy()
    low, high = SKIN_SHARE
    skin = np.clip((share_of_seeds / np.maximum(share_of_face, 1e-6) - low) / (high - low), 0, 1)
    probability = np.zeros(face.shape, np.float32)
    judged = face > 0
    probability[judged] = (mixture.responsibilities(_monomials(colour[judged])) @ torch.from_numpy(skin)).numpy()
    return probability


@dataclass(frozen=True)
class _Mixture:
    """A mixture of K Gaussians."""

    means: np.ndarray
    """(K, 3)"""
    covariances: np.ndarray
    """(K, 3, 3)"""
    weights: np.ndarray
    """(K,), sum 1"""

    @classmethod
    def from_moments(cls, moments: np.ndarray) -> _Mixture:
        """The mixture with given sums (K, 10) of `_monomials` over the pixels of each component."""
        totals = moments[:, 9] + 1e-6
        means, seconds = moments[:, 6:9] / totals[:, None], moments[:, _PAIR_OF] / totals[:, None, None]
        spreads = seconds - means[:, :, None] * means[:, None, :]
        return cls(means, spreads + np.diag(SPREAD_FLOOR**2), totals / totals.sum())

    def responsibilities(self, monomials: Float[Tensor, "N 10"]) -> Float[Tensor, "N K"]:
        """Return the probability of each component per pixel, from the pixels' `_monomials`."""
        # The logarithm of a Gaussian is a polynomial of degree two, so one matrix product evaluates all components.
        precisions = np.linalg.inv(self.covariances)
        linear = (precisions @ self.means[:, :, None])[..., 0]
        constant = np.log(np.maximum(self.weights, 1e-9)) + 0.5 * np.linalg.slogdet(precisions)[1]
        constant -= 0.5 * (linear * self.means).sum(1)
        squares = precisions[:, _ROWS, _COLUMNS] * np.where(_ROWS == _COLUMNS, -0.5, -1.0)
        coefficients = np.concatenate([squares, linear, constant[:, None]], 1)
        # Softmax over rows: with few components it is seven times as fast on a CPU as over columns.
        return (torch.from_numpy(coefficients) @ monomials.T).softmax(0).T


_ROWS, _COLUMNS = np.triu_indices(3)
# Index of the product of two features at each position of the symmetric 3×3 matrix.
_PAIR_OF = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


def _monomials(pixels: np.ndarray) -> Float[Tensor, "N 10"]:
    """Return six products of two features, the three features and 1 for each pixel (N, 3), in float64."""
    pixels = pixels.astype(np.float64)
    columns = [pixels[:, _ROWS] * pixels[:, _COLUMNS], pixels, np.ones((len(pixels), 1))]
    return torch.from_numpy(np.concatenate(columns, 1))


def _fit_mixture(pixels: np.ndarray, seeds: np.ndarray) -> _Mixture:
    """Fit means, covariances and weights by expectation maximisation with a deterministic start.

    Two components start from the darker and the lighter half of the seeds, one from the darkest pixels of the face and
    one from the pixels that differ most from the seeds.
    """
    order = np.argsort(seeds[:, 0])
    half = len(order) // 2
    centre, spread = _median(seeds), np.maximum(seeds.std(0), SPREAD_FLOOR)
    strangeness = (np.abs(pixels - centre) / spread).sum(1)
    tenth = max(len(pixels) // 10, 2)
    groups = [
        seeds[order[:half]],
        seeds[order[half:]],
        pixels[np.argsort(pixels[:, 0])[:tenth]],
        pixels[np.argsort(-strangeness)[:tenth]],
    ]
    mixture = _Mixture.from_moments(np.stack([_monomials(group).mean(0).numpy() for group in groups]))
    monomials = _monomials(pixels)
    for _ in range(ITERATIONS):
        mixture = _Mixture.from_moments((mixture.responsibilities(monomials).T @ monomials).numpy())
    return mixture


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the rows. NumPy's own imports `numpy.ma`, which takes longer than a photo's mask."""
    ordered = np.sort(values, axis=0)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def _strands(brightness: np.ndarray, mesh: np.ndarray, cheeks: np.ndarray, *, oval: np.ndarray) -> np.ndarray:
    """Return the mask (H, W) of hair over the forehead: brightness is rougher across the face than on the cheeks."""
    size = len(brightness)
    if np.count_nonzero(cheeks > 0.5) < 20:
        return np.zeros_like(cheeks)
    up = _upright(mesh)
    down_slope, right_slope = np.gradient(brightness)
    across = down_slope * up[0] - right_slope * up[1]
    across = across - _smooth(across, size, share=STRAND_DETREND_SHARE)
    within = np.clip(4 * _smooth(oval, size, share=STRAND_BLUR_SHARE) - 3, 0, 1)  # without the edge of the face itself
    roughness = np.sqrt(_smooth(across**2 * within, size, share=STRAND_BLUR_SHARE))
    usual = max(float(np.quantile(roughness[cheeks > 0.5], STRAND_QUANTILE)), ROUGHNESS_FLOOR)
    low, high = STRAND_ROUGHNESS
    hair = np.clip((roughness / usual - low) / (high - low), 0, 1) * _above_brows(mesh, up, size)
    hair = np.maximum(hair, _upwards(np.clip(2 * _smooth(hair, size, times=4) - 0.5, 0, 1), up))
    # Dilated by about the side of the blur: tips of strands are thinner than the area over which roughness is averaged.
    return np.clip(3 * _smooth(hair, size, times=2, share=STRAND_BLUR_SHARE), 0, 1)


def _upwards(hair: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the largest value (H, W) at or below each pixel: hair hangs down, so pixels above hair are hair."""
    size = len(hair)
    step = 1
    while step < size / 2:
        right, down = (round(value) for value in (up * step).tolist())
        moved = np.zeros_like(hair)
        to, source = _shifted(size, down), _shifted(size, -down)
        to_x, source_x = _shifted(size, right), _shifted(size, -right)
        moved[to, to_x] = hair[source, source_x]
        hair = np.maximum(hair, moved)
        step *= 2
    return hair


def _shifted(size: int, by: int) -> slice:
    return slice(max(by, 0), size + min(by, 0))


def _above_brows(mesh: np.ndarray, up: np.ndarray, size: int) -> np.ndarray:
    """Return a mask (H, W) that rises from 0 at the upper edge of the higher brow to 1 a little above it."""
    brows = mesh[[index for brow in MEDIAPIPE_BROWS for index in brow]]
    rows, columns = np.mgrid[:size, :size] + 0.5
    height = columns * up[0] + rows * up[1]
    return np.clip((height - (brows @ up).max()) / (ABOVE_BROWS_SHARE * size), 0, 1)


def _beard(skin: np.ndarray, halves: list[np.ndarray], lips: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return a weight of the lower face if it is hidden alike on both sides: by a beard, which belongs to the face.

    A hand or a microphone hides one side or the middle, and stays excluded.
    """
    hidden = []
    for half in halves:
        own = half * (1 - lips) * (1 - covered)
        hidden.append(float(((1 - skin) * own).sum() / max(own.sum(), 1e-6)))
    if min(hidden) < BEARD_COVERED or abs(hidden[0] - hidden[1]) > BEARD_ASYMMETRY:
        return np.zeros_like(skin)
    return np.maximum(*halves) * BEARD_WEIGHT
