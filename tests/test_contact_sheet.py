"""The grid of pictures, with one colour per picture so that its place can be read."""

from __future__ import annotations

import numpy as np
import pytest

from mien.export.contact_sheet import INK, LabelStyle, SheetLayout, contact_sheet, in_rows

PAPER = (250, 249, 247)
STYLE = LabelStyle(height=14, font_size=10, offset=(2, 1))


def pictures(count: int, width: int = 20, height: int = 30) -> list[np.ndarray]:
    return [np.full((height, width, 3), 10 * (k + 1), np.uint8) for k in range(count)]


def test_pictures_fill_rows_from_the_top_left_and_the_rest_is_background() -> None:
    sheet = contact_sheet(in_rows(pictures(5), 3), SheetLayout(background=PAPER))
    assert sheet.shape == (60, 60, 3)
    cells = sheet.reshape(2, 30, 3, 20, 3)[:, 15, :, 10]
    assert cells[..., 0].tolist() == [[10, 20, 30], [40, 50, PAPER[0]]]


def test_a_sheet_of_few_pictures_can_be_as_wide_as_one_of_many() -> None:
    sheet = contact_sheet(in_rows(pictures(1), 3), SheetLayout(background=PAPER), columns=3)
    assert sheet.shape == (30, 60, 3)
    assert (sheet[:, 20:] == PAPER).all()


def test_the_gap_is_around_and_between() -> None:
    sheet = contact_sheet(in_rows(pictures(4), 2), SheetLayout(gap=3, background=PAPER))
    assert sheet.shape == (3 + 2 * 33, 3 + 2 * 23, 3)
    paper = (sheet == PAPER).all(-1)
    assert np.flatnonzero(paper.all(0)).tolist() == [0, 1, 2, 23, 24, 25, 46, 47, 48]
    assert np.flatnonzero(paper.all(1)).tolist() == [0, 1, 2, 33, 34, 35, 66, 67, 68]


@pytest.mark.parametrize("above", [True, False])
def test_labels_are_written_in_their_own_strip(above: bool) -> None:
    layout = SheetLayout(background=PAPER, labels=STYLE)
    labels = {"column_labels": ["i", ""]} if above else {"labels": [["i", ""]]}
    sheet = contact_sheet(in_rows(pictures(2), 2), layout, **labels)
    assert sheet.shape == (30 + 14, 40, 3)
    strip, shown = (sheet[:14], sheet[14:]) if above else (sheet[30:], sheet[:30])
    np.testing.assert_array_equal(shown, contact_sheet(in_rows(pictures(2), 2), SheetLayout()))
    written = (strip != PAPER).any(-1)
    assert written[:, :8].any()
    assert not written[:, 8:].any()
    assert np.abs(strip.astype(int) - INK).sum(-1).min() < 60


def test_a_centred_label_lies_in_the_middle() -> None:
    style = LabelStyle(height=14, font_size=10, offset=(10, 7), centred=True)
    sheet = contact_sheet([pictures(1)], SheetLayout(background=PAPER, labels=style), labels=[["oo"]])
    columns = np.flatnonzero((sheet[30:] != PAPER).any((0, 2)))
    assert abs(columns.min() + columns.max() - 19) <= 1
