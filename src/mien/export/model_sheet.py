"""A face model at a glance: its mean, its first components at ±3 standard deviations, its expressions."""

from __future__ import annotations

import numpy as np
import torch

from mien.export.contact_sheet import PAPER, LabelStyle, SheetLayout, contact_sheet
from mien.export.portrait import HALF_VIEW, render_portrait
from mien.morphable import MorphableModel
from mien.typing import Float, Tensor, UInt8

SIDE_PX = 220
SIGMAS = 3.0
COMPONENTS = 4
_LAYOUT = SheetLayout(background=PAPER, labels=LabelStyle(height=18, font_size=10, offset=(6, 2)))
_LONGEST_LABEL = 32
"""Characters that fit below a picture."""
_EMPTY_SHARE = 1.2
"""Width of the view over that of the mean face."""

Setting = dict[str, tuple[int, float]]
"""Component and value, by "identity", "expression" or "albedo"."""


def model_picture(model: MorphableModel) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the mean, the first identity and albedo components at ±3 standard deviations and the largest expressions.

    Args:
        model: Any face model.

    Returns:
        A sheet of labelled pictures, 220 pixels each.
    """
    rows: list[list[tuple[str, Setting]]] = [[("mean", {})]]
    identity, expression, albedo = model.counts
    for part, count in (("identity", identity), ("albedo", albedo)):
        rows += [_component_row(part, min(COMPONENTS, count), deviation) for deviation in (-SIGMAS, SIGMAS)]
    amount = 1.0 if model.expression_kind == "strength" else SIGMAS
    largest = _largest(model.expression_basis, min(COMPONENTS, expression))
    rows.append([(model.expression_names[k], {"expression": (k, amount)}) for k in largest])
    rows = [row for row in rows if row]
    return contact_sheet(
        [[_picture(model, setting) for _, setting in row] for row in rows],
        _LAYOUT,
        labels=[[label[:_LONGEST_LABEL] for label, _ in row] for row in rows],
    )


def _component_row(part: str, count: int, deviation: float) -> list[tuple[str, Setting]]:
    """The first components of a part, each alone at this deviation."""
    return [(f"{part} {k + 1}: {deviation:+.0f} SD", {part: (k, deviation)}) for k in range(count)]


def _largest(basis: Float[Tensor, "E V 3"], count: int) -> list[int]:
    """The components with the largest movement, summed over the vertices."""
    return basis.square().sum((1, 2)).argsort(descending=True)[:count].tolist()


def _picture(model: MorphableModel, setting: Setting) -> UInt8[np.ndarray, "h w 3"]:
    parts = {part: torch.zeros(n) for part, n in zip(("identity", "expression", "albedo"), model.counts, strict=True)}
    for part, (component, value) in setting.items():
        parts[part][component] = value
    low, high = model.mean.amin(0), model.mean.amax(0)
    distance = _EMPTY_SHARE / 2 * float((high - low)[:2].amax()) / HALF_VIEW
    return render_portrait(model, **parts, centre=(high + low) / 2, distance=distance, side_px=SIDE_PX).pixels
