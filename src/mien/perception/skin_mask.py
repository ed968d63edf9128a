"""Which pixels of a face crop show its skin: the mesh's oval less eyes, open mouth and whatever covers the face.

Coverings (hair, glasses, hands, microphones, hats) are told from skin by colour, without training: a
Gaussian mixture of log brightness and log colour ratios is fitted to the pixels of the face, and each component
is skin in so far as the cheeks and the nose have their share of it. So one person's skin is learnt from their
own cheeks, in light and in shadow, in colour or in grey. A fringe of the skin's own colour is told by its strands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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
)
from mien.perception.crops import Crop
from mien.perception.face_detection import FaceDetection
from mien.perception.windows import PhotoPyramid
from mien.typing import Float, Tensor

# The mesh ends below the hairline; this share of the distance from nose bridge to its top is added.
FOREHEAD_EXTENSION = 0.15
SUPERSAMPLING = 3
# Luminance below this (of 1) is noise in the colour ratios.
LOG_FLOOR = 0.03
COMPONENTS = 4
ITERATIONS = 10
PIXELS_TO_FIT = 2500
# A component is no skin if its share of the cheeks is below the first fraction of its share of the face, and skin
# entirely above the second.
SKIN_SHARE = (0.2, 0.55)
# Standard deviations no component may go below: brightness, red-green, blue-green (logarithms).
SPREAD_FLOOR = np.array([0.10, 0.05, 0.05])
SMOOTHING_SHARE = 0.018
BEARD_WEIGHT = 0.7
# Strands hang from the hairline: brightness changes across the face, where wrinkles of a forehead make it change
# along it. Roughness across, in multiples of that of the cheeks' rougher quarter, from which hair begins and is
# certain; looked at on 80 photos of Helen and AFW.
STRAND_ROUGHNESS = (1.5, 3.0)
STRAND_QUANTILE = 0.75
STRAND_DETREND_SHARE, STRAND_BLUR_SHARE = 0.04, 0.03
ABOVE_BROWS_SHARE = 0.03
ROUGHNESS_FLOOR = 2e-3


@dataclass(frozen=True)
class FaceParts:
    """Soft masks (S,S) in [0,1] of a crop."""

    skin: Float[Tensor, "S S"]
    """Visible skin with brows and lips."""
    eyes: Float[Tensor, "S S"]
    """Openings of the eyes."""
    mouth: Float[Tensor, "S S"]
    """The open mouth."""
    oval: Float[Tensor, "S S"]
    """The whole face up to the hairline, whatever covers it."""
    inner: Float[Tensor, "S S"]
    """Eyes, nose, mouth and what lies between them, whatever covers it."""

    @property
    def face(self) -> Float[Tensor, "S S"]:
        """What of the photo belongs on the face: its skin, and in its inner part eyes, mouth, beard or glasses too.

        On the forehead and near the outline, what is not skin is hair or background.
        """
        return torch.maximum(self.skin, self.inner)


def face_mask(pixels: np.ndarray, observation: FaceDetection, crop: Crop) -> Float[Tensor, "S S"]:
    """Return the soft mask of the visible skin in a crop of the photo (uint8 H W 3); not differentiable."""
    return face_parts(pixels, observation, crop).skin


def face_parts(pixels: np.ndarray, observation: FaceDetection, crop: Crop) -> FaceParts:
    """Divide a crop of the photo (uint8 H W 3) into visible skin, eye openings and open mouth."""
    photo = PhotoPyramid(pixels, device=torch.device("cpu"))
    picture, inside = photo.sample(crop.photo_from_crop.numpy(), crop.size)
    mesh = crop.to_crop(torch.from_numpy(observation.landmarks468_px[:, :2]).double()).numpy()

    def fill(*parts: tuple[int, ...]) -> np.ndarray:
        return _fill([mesh[list(part)] for part in parts], crop.size)

    oval = _fill([_with_forehead(mesh)], crop.size) * inside.numpy()
    eyes, mouth, lips, brows = (
        fill(*MEDIAPIPE_EYES),
        fill(MEDIAPIPE_MOUTH),
        fill(MEDIAPIPE_LIPS),
        fill(*MEDIAPIPE_BROWS),
    )
    seeds = fill(*MEDIAPIPE_CHEEKS, MEDIAPIPE_NOSE) * inside.numpy()
    colour = _features(picture.permute(1, 2, 0).numpy())
    to_judge = oval * (1 - np.maximum(np.maximum(eyes, lips), brows))
    skin = _smooth(_skin_probability(colour, to_judge, seeds), crop.size)
    skin = np.clip((skin - 0.35) / 0.3, 0, 1)
    skin = skin * (1 - _strands(colour[..., 0], mesh, fill(*MEDIAPIPE_CHEEKS) * inside.numpy(), oval=oval))
    # Lips and brows have colours of their own; they count where the skin around them is seen.
    around = _smooth(skin * to_judge, crop.size, times=4) / np.maximum(_smooth(to_judge, crop.size, times=4), 1e-3)
    features = np.maximum(lips, brows)
    skin = np.where(features > 0.5, np.clip(2 * around, 0, 1), skin)
    skin = np.maximum(skin, _beard(skin, [fill(half) for half in MEDIAPIPE_BEARD], lips))
    skin = skin * oval * (1 - eyes) * (1 - mouth)
    parts = (skin, eyes, mouth, oval, fill(MEDIAPIPE_INNER) * inside.numpy())
    tensors = [torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in parts]
    return FaceParts(*tensors)


def _fill(polygons: list[np.ndarray], size: int) -> np.ndarray:
    """Rasterise polygons (crop pixels) with soft edges."""
    filled = np.zeros((size, size), np.float32)
    corners = np.concatenate(polygons)
    # Only the part around the polygons is drawn: most are small, and the whole would cost them all the same.
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, size - 1)
    wide, high = (np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, size) - low).tolist()
    canvas = Image.new("L", (wide * SUPERSAMPLING, high * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        # Pillow counts pixel centres; half a pixel is half a fine pixel here.
        draw.polygon([tuple(p) for p in ((polygon - low) * SUPERSAMPLING - 0.5).tolist()], fill=255)
    filled[low[1] : low[1] + high, low[0] : low[0] + wide] = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255
    return filled


def _with_forehead(mesh: np.ndarray) -> np.ndarray:
    """Return the oval with its top moved outwards along the face."""
    up = (mesh[MEDIAPIPE_TOP] - mesh[MEDIAPIPE_NOSE_BRIDGE]) * FOREHEAD_EXTENSION
    lifted = mesh.copy()
    share = np.array([0.35, 0.7, 0.9, 1.0, 1.0, 1.0, 0.9, 0.7, 0.35])
    lifted[list(MEDIAPIPE_FOREHEAD)] += share[:, None] * up
    return lifted[list(MEDIAPIPE_OVAL)]


def _features(picture: np.ndarray) -> np.ndarray:
    """Return log brightness, log red to green, log blue to green (H,W,3)."""
    logs = np.log(picture + LOG_FLOOR)
    return np.stack([logs.mean(2), logs[..., 0] - logs[..., 1], logs[..., 2] - logs[..., 1]], 2)


def _smooth(values: np.ndarray, size: int, *, times: int = 2, share: float = SMOOTHING_SHARE) -> np.ndarray:
    """Blur by a repeated box whose side is a share of the crop's."""
    along = _box_means(size, 2 * max(1, round(size * share / 2)) + 1, times)
    # torch multiplies, here and below: NumPy's BLAS has threads of its own, which would wait in torch's way.
    return (along @ torch.from_numpy(values.astype(np.float32, copy=False)) @ along.T).numpy()


@cache
def _box_means(size: int, side: int, times: int) -> Float[Tensor, "S S"]:
    """Return the matrix that replaces each value of a row by the mean of those around it, repeatedly."""
    places = torch.arange(size)
    near = ((places[:, None] - places).abs() <= side // 2).double()
    return torch.linalg.matrix_power(near / near.sum(1, keepdim=True), times).float()


def _skin_probability(colour: np.ndarray, face: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return each pixel's probability of skin by the mixture (H,W); ones where there is too little to learn from."""
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
    """Gaussians over K components: means (K,3), covariances (K,3,3), weights (K)."""

    means: np.ndarray
    covariances: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_moments(cls, moments: np.ndarray) -> _Mixture:
        """From the sums (K,10) of the monomials of each component's pixels."""
        totals = moments[:, 9] + 1e-6
        means, seconds = moments[:, 6:9] / totals[:, None], moments[:, _PAIR_OF] / totals[:, None, None]
        spreads = seconds - means[:, :, None] * means[:, None, :]
        return cls(means, spreads + np.diag(SPREAD_FLOOR**2), totals / totals.sum())

    def responsibilities(self, monomials: Float[Tensor, "N 10"]) -> Float[Tensor, "N K"]:
        """Return the probability of each component, given the pixels' monomials."""
        # The logarithm of a Gaussian is a polynomial of degree two: one product with its coefficients serves all.
        precisions = np.linalg.inv(self.covariances)
        linear = (precisions @ self.means[:, :, None])[..., 0]
        constant = np.log(np.maximum(self.weights, 1e-9)) + 0.5 * np.linalg.slogdet(precisions)[1]
        constant -= 0.5 * (linear * self.means).sum(1)
        squares = precisions[:, _ROWS, _COLUMNS] * np.where(_ROWS == _COLUMNS, -0.5, -1.0)
        coefficients = np.concatenate([squares, linear, constant[:, None]], 1)
        # Over the rows: with few components, a CPU takes a softmax across a row's ends at a seventh of the speed.
        return (torch.from_numpy(coefficients) @ monomials.T).softmax(0).T


_ROWS, _COLUMNS = np.triu_indices(3)
# Which of the six products of two colours stands at each place of the symmetric 3×3 matrix.
_PAIR_OF = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


def _monomials(pixels: np.ndarray) -> Float[Tensor, "N 10"]:
    """Return the six products of two features, the three features and one for each pixel (N,3), in float64."""
    pixels = pixels.astype(np.float64)
    columns = [pixels[:, _ROWS] * pixels[:, _COLUMNS], pixels, np.ones((len(pixels), 1))]
    return torch.from_numpy(np.concatenate(columns, 1))


def _fit_mixture(pixels: np.ndarray, seeds: np.ndarray) -> _Mixture:
    """Fit means, covariances and weights by expectation maximisation from a start that needs no chance.

    Two components start on the darker and the lighter half of the seeds, one on the darkest pixels of the face and
    one on those least like the seeds.
    """
    order = np.argsort(seeds[:, 0])
    half = len(order) // 2
    centre, spread = np.median(seeds, 0), np.maximum(seeds.std(0), SPREAD_FLOOR)
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


def _strands(brightness: np.ndarray, mesh: np.ndarray, cheeks: np.ndarray, *, oval: np.ndarray) -> np.ndarray:
    """Return where hair hangs over the forehead (H,W): log brightness is rough across the face, unlike the cheeks'."""
    size = len(brightness)
    if np.count_nonzero(cheeks > 0.5) < 20:
        return np.zeros_like(cheeks)
    up = mesh[MEDIAPIPE_TOP] - mesh[MEDIAPIPE_NOSE_BRIDGE]
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    down_slope, right_slope = np.gradient(brightness)
    across = down_slope * up[0] - right_slope * up[1]
    across = across - _smooth(across, size, share=STRAND_DETREND_SHARE)
    within = np.clip(4 * _smooth(oval, size, share=STRAND_BLUR_SHARE) - 3, 0, 1)  # the outline is an edge of its own
    roughness = np.sqrt(_smooth(across**2 * within, size, share=STRAND_BLUR_SHARE))
    usual = max(float(np.quantile(roughness[cheeks > 0.5], STRAND_QUANTILE)), ROUGHNESS_FLOOR)
    low, high = STRAND_ROUGHNESS
    hair = np.clip((roughness / usual - low) / (high - low), 0, 1) * _above_brows(mesh, up, size)
    hair = np.maximum(hair, _upwards(np.clip(2 * _smooth(hair, size, times=4) - 0.5, 0, 1), up))
    # Grown by about the blur's side: the tips of strands are thinner than what roughness is averaged over.
    return np.clip(3 * _smooth(hair, size, times=2, share=STRAND_BLUR_SHARE), 0, 1)


def _upwards(hair: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the largest value (H,W) from a pixel downwards: what is above hair is not skin, for hair hangs."""
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
    """Return 1 from a little above the higher brow on (H,W), fading in from its upper edge."""
    brows = mesh[[index for brow in MEDIAPIPE_BROWS for index in brow]]
    rows, columns = np.mgrid[:size, :size] + 0.5
    height = columns * up[0] + rows * up[1]
    return np.clip((height - (brows @ up).max()) / (ABOVE_BROWS_SHARE * size), 0, 1)


def _beard(skin: np.ndarray, halves: list[np.ndarray], lips: np.ndarray) -> np.ndarray:
    """Return a weight for the lower face where it is covered on both sides alike: a beard, which is to be kept.

    A hand or a microphone covers one side or the middle, and stays excluded.
    """
    covered = []
    for half in halves:
        own = half * (1 - lips)
        covered.append(float(((1 - skin) * own).sum() / max(own.sum(), 1e-6)))
    if min(covered) < 0.35 or abs(covered[0] - covered[1]) > 0.3:
        return np.zeros_like(skin)
    return np.maximum(*halves) * BEARD_WEIGHT
