"""Samples rotated square windows of a large photo at any scale, fast and without aliasing."""

from __future__ import annotations

import math

import numpy as np
import torch

from mien.perception.crops import Padding, sample_affine
from mien.rasterizer.cpu import native
from mien.typing import Float, Tensor, UInt8

# Exposure is changed only if a window is clearly dark, bright or low in contrast. Limits of the Rec. 709 luma of the
# encoded values: the median, and the range from the 2nd to the 98th percentile.
DARK_MEDIAN = 0.22
BRIGHT_MEDIAN = 0.78
FLAT_RANGE = 0.45
GOOD_MEDIAN = 0.45
# In place of 0, whose logarithm takes ten times as long.
BLACK = 1e-12
LUMA_709 = (0.2126, 0.7152, 0.0722)


def normalise_exposure(windows: Float[Tensor, "B 3 H W"], inside: Float[Tensor, "B H W"]) -> Float[Tensor, "B 3 H W"]:
    """Normalise the exposure of badly exposed windows, as input of the detection networks.

    Args:
        windows: RGB in [0, 1].
        inside: 1 where a window shows the photo, 0 where it is padding, which is ignored.

    Returns:
        Windows with stretched contrast and adjusted brightness; well exposed windows unchanged.
    """
    # A few thousand pixels are enough for the percentiles.
    step = max(1, windows.shape[-1] // 64)
    weights = torch.tensor(LUMA_709, device=windows.device, dtype=windows.dtype)[:, None, None]
    lumas = (windows[..., ::step, ::step] * weights).sum(1).cpu().numpy()
    shown = inside[:, ::step, ::step].cpu().numpy() > 0
    results = windows
    for k, (luma, mask) in enumerate(zip(lumas, shown, strict=True)):
        if (curve := _exposure_curve(np.sort(luma[mask]))) is not None:
            low, spread, exponent = curve
            results = windows.clone() if results is windows else results
            # The logarithm and the exponential of vectors take half the time of a power.
            results[k].sub_(low).div_(spread).clamp_(BLACK, 1).log2_().mul_(exponent).exp2_()
    return results


def _exposure_curve(luma: Float[np.ndarray, "N"]) -> tuple[float, float, float] | None:
    """Black, range and exponent for a window with these lumas in rising order; None if it is well exposed."""
    if luma.size < 16:
        return None
    places = np.array([0.02, 0.5, 0.98]) * (luma.size - 1)
    low, middle, high = np.interp(places, np.arange(luma.size), luma).tolist()
    if DARK_MEDIAN <= middle <= BRIGHT_MEDIAN and high - low >= FLAT_RANGE:
        return None
    spread = max(high - low, 0.02)
    median = min(max((middle - low) / spread, 0.02), 0.98)
    # A power curve maps the median to a medium grey; its exponent is limited so that noise is not amplified.
    return low, spread, min(max(math.log(GOOD_MEDIAN) / math.log(median), 0.4), 2.5)


class PhotoPyramid:
    """A photo and its successively halved versions, computed on first use."""

    def __init__(self, pixels: np.ndarray, *, device: torch.device) -> None:
        self.levels = [np.ascontiguousarray(pixels)]
        self.device = device
        self.height, self.width = pixels.shape[:2]

    def level(self, number: int) -> np.ndarray:
        """Return the photo halved `number` times; each pixel is the mean of four."""
        while len(self.levels) <= number:
            height, width, _ = self.levels[-1].shape
            halved = np.empty((-(-height // 2), -(-width // 2), 3), np.uint8)
            native().halve(self.levels[-1], halved)
            self.levels.append(halved)
        return self.levels[number]

    def sample(
        self, photo_from_window: np.ndarray, size: int, *, padding: Padding = "zeros"
    ) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
        """Sample one window.

        Args:
            photo_from_window: 2×3 matrix from window pixels to photo pixels.
            size: Side of the window, pixels.
            padding: How pixels outside the photo are filled; a window without any of the photo is black.

        Returns:
            RGB in [0, 1], and the mask of pixels inside the photo.
        """
        windows, inside = self.sample_many([photo_from_window], size, padding=padding)
        return windows[0], inside[0]

    def sample_many(
        self, matrices: list[np.ndarray], size: int, *, padding: Padding = "zeros"
    ) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, "B S S"]]:
        """Sample several windows of one size, see `sample`."""
        windows = torch.empty(len(matrices), 3, size, size, device=self.device)
        covered = torch.empty(len(matrices), size, size, device=self.device)
        for matrix, window, own in zip(matrices, windows, covered, strict=True):
            self._sample_into(window, own, matrix, padding=padding)
        return windows, (covered > 0.5).float()

    def _sample_into(
        self,
        window: Float[Tensor, "3 S S"],
        covered: Float[Tensor, "S S"],
        photo_from_window: np.ndarray,
        *,
        padding: Padding,
    ) -> None:
        (xx, xy, x0), (yx, yy, y0) = photo_from_window.tolist()
        size, shrink = len(covered), math.hypot(xx, yx)
        number = min(int(math.log2(max(shrink, 1.0))), int(math.log2(min(self.height, self.width))))
        pixels, matrix = self.level(number), photo_from_window / 2**number
        # The part of the photo that the window shows: the range of its corners, with a margin.
        across = [x0 + x + y for x in (0, size * xx) for y in (0, size * xy)]
        down = [y0 + x + y for x in (0, size * yx) for y in (0, size * yy)]
        left, top = (max(math.floor(min(k) / 2**number) - 2, 0) for k in (across, down))
        right, bottom = (max(math.ceil(max(k) / 2**number) + 2, 0) for k in (across, down))
        part = pixels[top:bottom, left:right]
        if not part.size:
            window.zero_()
            covered.zero_()
        # Where a window has one pixel for many of the last level, boxes of pixels must be averaged first.
        elif self.device.type == "cpu" and shrink < 2 ** (number + 1) and padding != "reflection":
            native().sample_window(pixels, matrix, padding == "border", window.numpy(), covered.numpy())
        else:
            shifted = torch.from_numpy(matrix - np.array([[0, 0, left], [0, 0, top]]))
            colours, shares = _sampled(part, shifted.to(self.device), size, padding=padding)
            window.copy_(colours)
            covered.copy_(shares)


def _sampled(
    pixels: UInt8[np.ndarray, "H W 3"], matrix: Float[Tensor, "2 3"], size: int, *, padding: Padding
) -> tuple[Float[Tensor, "3 S S"], Float[Tensor, "S S"]]:
    """Colours of a window, and how much of each of its pixels the picture covers."""
    # The fourth channel is the mask: white inside.
    image = np.full((1, 4, *pixels.shape[:2]), 255, np.uint8)
    image[0, :3] = pixels.transpose(2, 0, 1)
    picture, matrices = torch.from_numpy(image).to(matrix.device), matrix[None].float()
    window = sample_affine(picture[:, :3], matrices, size=(size, size), padding=padding)[0] / 255
    return window, sample_affine(picture[:, 3:], matrices, size=(size, size), padding="zeros")[0, 0] / 255


def window_matrix(centre: np.ndarray, side: float, size: int, *, angle: float = 0.0) -> np.ndarray:
    """Return the 2×3 matrix from pixels of a square window to photo pixels.

    Args:
        centre: Centre of the square, photo pixels.
        side: Side of the square, photo pixels.
        size: Side of the window, window pixels.
        angle: Rotation of the window, radians.
    """
    scale = side / size
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, (np.asarray(centre) - linear @ np.full(2, size / 2))[:, None]], 1)
