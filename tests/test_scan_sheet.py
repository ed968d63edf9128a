"""The picture sheet of the evaluation against scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mien.export.scan_sheet import PANEL_SIZE, ScanPicture, midplane_cut, save_scan_sheet, scan_panels
from mien.geometry import Surface
from tests.evaluation.scan_files import IMAGE_SIZE, LANDMARKS_XY, grid_mesh, lifted, on_mesh, project

ORANGE, DARK = (225, 110, 20), (60, 60, 60)


def picture() -> ScanPicture:
    vertices, triangles = (torch.from_numpy(array) for array in grid_mesh())
    points = on_mesh(2000)
    return ScanPicture(
        photo=np.full((IMAGE_SIZE[1], IMAGE_SIZE[0], 3), (0, 0, 200), np.uint8),
        pixels=torch.from_numpy(project(grid_mesh()[0])),
        prediction=Surface(vertices + torch.tensor([0.0, 0.0, 8.0]), triangles),
        scan=Surface(vertices, triangles),
        points=torch.from_numpy(points),
        errors=np.where(points[:, 1] > 20, 9.0, 0.0),
        landmarks7=torch.from_numpy(lifted(LANDMARKS_XY)),
    )


def has_colour(panel: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (panel == np.array(colour)).all(-1)


def test_the_error_map_is_dark_where_the_error_is_large_and_upright() -> None:
    panel = scan_panels(picture())[2]
    good, bad = has_colour(panel, (252, 246, 205)), has_colour(panel, (150, 10, 40))
    assert good.sum() > 2000
    assert bad.sum() > 1000
    assert np.nonzero(bad)[0].max() < np.nonzero(good)[0].min() + 4


def test_the_profile_shows_the_prediction_in_front_of_the_scan() -> None:
    panel = scan_panels(picture())[3]
    middle = slice(PANEL_SIZE[1] // 2 - 60, PANEL_SIZE[1] // 2 + 60)
    scan, prediction = (np.nonzero(has_colour(panel[middle], colour))[1] for colour in (DARK, ORANGE))
    assert prediction.mean() - scan.mean() == pytest.approx(8 * 1.6, abs=2.0)


def test_the_overlay_covers_the_face_in_the_photo() -> None:
    photo, overlay, *_ = scan_panels(picture())
    changed = (photo != overlay).any(-1)
    assert changed[PANEL_SIZE[1] // 2, PANEL_SIZE[0] // 2]
    assert not changed[0, 0]
    assert 0.5 < changed.mean() < 0.95


def test_panels_without_data_are_empty() -> None:
    blank = np.full((PANEL_SIZE[1], PANEL_SIZE[0], 3), (250, 249, 247), np.uint8)
    panels = scan_panels(replace(picture(), photo=None, landmarks7=None))
    assert all(np.array_equal(panel, blank) for panel in panels)
    unknown = torch.full((7, 3), torch.nan, dtype=torch.float64)
    assert np.array_equal(scan_panels(replace(picture(), landmarks7=unknown))[2], blank)
    assert not np.array_equal(scan_panels(replace(picture(), pixels=None))[0], blank)


def test_the_sheet_has_one_row_per_photo(tmp_path: Path) -> None:
    rows = [scan_panels(picture())] * 2
    save_scan_sheet(rows, ["a: 1 mm", "b: 2 mm"], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 4 * (PANEL_SIZE[0] + 4) + 4
        assert sheet.size[1] > 2 * PANEL_SIZE[1]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_the_cut_through_the_middle_plane() -> None:
    vertices = torch.tensor([[-1.0, 0, 0], [1, 0, 2], [1, 4, 2], [5, 0, 0], [6, 0, 0]])
    cut = midplane_cut(vertices, torch.tensor([[0, 1, 2], [1, 3, 4]]))
    assert cut.shape == (1, 2, 3)
    assert sorted(cut[0].tolist()) == [[0.0, 0.0, 1.0], [0.0, 2.0, 1.0]]
