"""One picture of many: a grid with labels below the pictures or above the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mien.typing import UInt8

PAPER, INK = (250, 249, 247), (62, 60, 57)
"""Background and text of mien's labelled sheets."""


@dataclass(frozen=True)
class LabelStyle:
    """How the labels of a contact sheet are set; lengths in pixels."""

    height: int
    """Height of the strip that a row of labels takes."""
    font_size: int
    """Size of Pillow's default font."""
    offset: tuple[int, int]
    """Position of the text from the top-left corner of its strip, across and down."""
    centred: bool = False
    """Whether `offset` is the middle of the text; otherwise it is its top-left corner."""
    ink: tuple[int, int, int] = INK
    """Colour of the text."""


@dataclass(frozen=True)
class SheetLayout:
    """The empty space of a contact sheet and its colour."""

    gap: int = 0
    """Pixels around and between the pictures."""
    background: tuple[int, int, int] = (0, 0, 0)
    """Colour of the empty space."""
    labels: LabelStyle | None = None
    """Style of all labels; required where there are any."""


def contact_sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    layout: SheetLayout,
    *,
    labels: Sequence[Sequence[str]] = (),
    column_labels: Sequence[str] = (),
    columns: int = 0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Arrange pictures of one size in a grid.

    Args:
        rows: Pictures row by row, from the top; a shorter row leaves background at its end.
        layout: Gaps, background and style of the labels.
        labels: A label below each picture, in rows as the pictures.
        column_labels: A label above each column.
        columns: Minimum number of columns; sheets of few pictures are as wide as those of many.

    Returns:
        The sheet.
    """
    side_y, side_x = rows[0][0].shape[:2]
    strip = layout.labels.height if layout.labels else 0
    top = layout.gap + (strip if column_labels else 0)
    step_x, step_y = side_x + layout.gap, side_y + layout.gap + (strip if labels else 0)
    size = layout.gap + max(columns, *map(len, rows)) * step_x, top + len(rows) * step_y
    sheet = Image.new("RGB", size, layout.background)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (layout.gap + c * step_x, top + r * step_y))
    texts = [((layout.gap + c * step_x, layout.gap), text) for c, text in enumerate(column_labels)]
    texts += [
        ((layout.gap + c * step_x, top + r * step_y + side_y), text)
        for r, row in enumerate(labels)
        for c, text in enumerate(row)
    ]
    if layout.labels is not None:
        _write(sheet, texts, layout.labels)
    return np.array(sheet)


def in_rows(pictures: Sequence[UInt8[np.ndarray, "h w 3"]], columns: int) -> list[Sequence[UInt8[np.ndarray, "h w 3"]]]:
    """Break a list of pictures into rows of `columns`; the last one may be shorter."""
    return [pictures[k : k + columns] for k in range(0, len(pictures), columns)]


def _write(sheet: Image.Image, texts: Sequence[tuple[tuple[int, int], str]], style: LabelStyle) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(style.font_size)
    for (left, top), text in texts:
        position = left + style.offset[0], top + style.offset[1]
        draw.text(position, text, fill=style.ink, font=font, anchor="mm" if style.centred else "la")
