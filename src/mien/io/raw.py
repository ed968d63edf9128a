"""Develop the raw photos of cameras: DNG, NEF, CR2, CR3, ARW and others, by LibRaw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mien.errors import ImageError
from mien.io.source import BinaryFile

_SRGB_GAMMA = (2.4, 12.92)  # exponent and slope at black of IEC 61966-2-1


def develop(file: BinaryFile, path: Path, check_size: Callable[[tuple[int, int]], None]) -> Image.Image:
    """Develop a raw photo with the camera's white balance, upright, without automatic brightness.

    Args:
        file: The photo.
        path: Its name in messages.
        check_size: Called with width and height before the photo is developed; raises if it is too large.

    Returns:
        The picture, sRGB.

    Raises:
        ImageError: LibRaw does not support the camera or its compression.
    """
    import rawpy  # noqa: PLC0415 (an extra)

    file.seek(0)
    try:
        with rawpy.imread(file) as raw:  # pyright: ignore[reportArgumentType] (it needs `read` only)
            check_size((raw.sizes.raw_width, raw.sizes.raw_height))
            return Image.fromarray(
                raw.postprocess(
                    use_camera_wb=True,
                    no_auto_bright=True,
                    output_color=rawpy.ColorSpace.sRGB,  # pyright: ignore[reportAttributeAccessIssue]
                    gamma=_SRGB_GAMMA,
                    output_bps=8,
                )
            )
    except (rawpy.LibRawFileUnsupportedError, rawpy.LibRawUnsupportedThumbnailError):  # pyright: ignore[reportAttributeAccessIssue]
        raise ImageError(f"{path}: a raw photo of an unknown camera or compression; export it as JPEG or PNG") from None
