"""What `benchmarks/detail.py` measures of each face, and the tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mien.evaluation.colour import ToneGroup
from mien.evaluation.likeness import LikenessRow
from mien.evaluation.report import markdown_table

LEAST_RELIEF_MM = 0.04
"""Root mean square of fine relief over seen texels from which a face counts as folded; two drawn faces in five have it,
the others' pores and fuller cheeks are no wrinkles."""
DEEP_RELIEF_MM = 0.1
"""From which it is an old face's: half of the folded ones, and few lie between."""
RELIEF_BAR, PHOTOMETRIC_BAR, DELTA_E_BAR = 0.6, 0.4, 4.0


@dataclass(frozen=True)
class DrawnFace:
    """One drawn face under one base."""

    name: str
    base: str
    """"true" coefficients, or those of a "fit" to the photographed drawing."""
    true_rms_mm: float
    true_fine_rms_mm: float
    found_rms_mm: float
    correlation: float
    fine_correlation: float
    fine_covariance_mm2: float
    found_fine_variance_mm2: float
    true_fine_variance_mm2: float
    base_vertex_mm: float
    """Mean distance of the base's seen vertices to the true surface, displacement and all."""
    detail_vertex_mm: float


@dataclass(frozen=True)
class PortraitDetail:
    """One portrait."""

    file: str
    tone: ToneGroup
    likeness: LikenessRow
    base_nme51: float
    detail_nme51: float
    base_delta_e: float
    """CIEDE2000 between the mean colours of photo and drawing inside the mask."""
    detail_delta_e: float
    base_pixel_delta_e: float
    """The mean of CIEDE2000 over the pixels inside the mask."""
    detail_pixel_delta_e: float
    offset_saturation: float
    """Share of texels whose colour leaves [0, 1]."""
    displacement_saturation: float
    base_laplacian_mm2: float
    detail_laplacian_mm2: float
    displacement_asymmetry_mm: float
    offset_asymmetry: float


@dataclass(frozen=True)
class DetailResults:
    drawn: tuple[DrawnFace, ...]
    portraits: tuple[PortraitDetail, ...]


def drawn_report(rows: Sequence[DrawnFace]) -> str:
    lines = []
    for base in ("true", "fit"):
        folded = [r for r in rows if r.base == base and r.true_fine_rms_mm >= LEAST_RELIEF_MM]
        deep = [r for r in folded if r.true_fine_rms_mm >= DEEP_RELIEF_MM]
        flat = [r for r in rows if r.base == base and r.true_rms_mm == 0]
        lines.append(
            [
                base,
                len(folded),
                f"{pooled_correlation(folded):.3f}",
                _spread_of([r.fine_correlation for r in folded], "{:.3f}"),
                len(deep),
                _spread_of([r.fine_correlation for r in deep], "{:.3f}"),
                _spread_of([r.correlation for r in folded], "{:.3f}"),
                _spread_of([r.base_vertex_mm for r in folded], "{:.3f}"),
                _spread_of([r.detail_vertex_mm for r in folded], "{:.3f}"),
                len(flat),
                _spread_of([r.found_rms_mm for r in folded], "{:.3f}"),
                _spread_of([r.found_rms_mm for r in flat], "{:.3f}"),
            ]
        )
    header = ["base", "folded faces", f"fine correlation over all (≥ {RELIEF_BAR})", "mean of the faces' own",
              "deep ones", "mean of their own", "whole correlation", "vertex error, mm", "with displacement",
              "flat faces", "relief found on folded, mm", "on flat, mm"]  # fmt: skip
    return markdown_table(header, lines)


def pooled_correlation(rows: Sequence[DrawnFace]) -> float:
    """Pearson's correlation of fine relief over the texels of all faces together, each about its own mean."""
    covariance, found, true = (
        sum(getattr(r, name) for r in rows)
        for name in ("fine_covariance_mm2", "found_fine_variance_mm2", "true_fine_variance_mm2")
    )
    return covariance / np.sqrt(found * true) if found * true > 0 else np.nan


def _spread_of(values: Sequence[float], form: str) -> str:
    finite = np.array([v for v in values if np.isfinite(v)])
    if len(finite) == 0:
        return "–"
    return f"{form.format(finite.mean())} ± {form.format(finite.std())}"


def portrait_report(rows: Sequence[PortraitDetail]) -> str:
    base, detail = (np.array([getattr(r.likeness, f"{n}_error") for r in rows]) for n in ("base", "detail"))
    gain = 1 - detail.mean() / base.mean()
    pairs = [
        ("photometric error inside the mask", base, detail, "{:.4f}"),
        ("landmark error, NME51 %", [100 * r.base_nme51 for r in rows], [100 * r.detail_nme51 for r in rows], "{:.3f}"),
        ("verified %", [100 * r.likeness.base.verified for r in rows], [100 * r.likeness.detail.verified for r in rows],
         "{:.1f}"),
        ("verified alone %", [100 * r.likeness.base_alone.verified for r in rows],
         [100 * r.likeness.detail_alone.verified for r in rows], "{:.1f}"),
        ("identity distance", [r.likeness.base.distance for r in rows], [r.likeness.detail.distance for r in rows],
         "{:.3f}"),
        ("Laplacian energy, mm²", [r.base_laplacian_mm2 for r in rows], [r.detail_laplacian_mm2 for r in rows],
         "{:.4f}"),
    ]  # fmt: skip
    lines = [[name, _spread_of(a, form), _spread_of(b, form)] for name, a, b, form in pairs]
    sound = [
        ("texels outside [0, 1] %", [100 * r.offset_saturation for r in rows], "{:.3f}"),
        ("texels displaced by 3 mm %", [100 * r.displacement_saturation for r in rows], "{:.3f}"),
        ("asymmetry of displacement, mm", [r.displacement_asymmetry_mm for r in rows], "{:.4f}"),
        ("asymmetry of offset", [r.offset_asymmetry for r in rows], "{:.4f}"),
    ]
    lines += [[name, "", _spread_of(values, form)] for name, values, form in sound]
    table = markdown_table([f"{len(rows)} portraits", "base", "augmented"], lines)
    return f"{table}\n\nPhotometric gain: {100 * gain:.1f} % (bar {100 * PHOTOMETRIC_BAR:.0f} %).\n\n{tone_table(rows)}"


def tone_table(rows: Sequence[PortraitDetail]) -> str:
    groups = sorted({r.tone for r in rows})
    lines = []
    for group in groups:
        of_group = [r for r in rows if r.tone == group]
        lines.append(
            [
                group,
                len(of_group),
                _spread_of([r.base_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.base_pixel_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_pixel_delta_e for r in of_group], "{:.2f}"),
            ]
        )
    header = ["tone", "portraits", "ΔE2000 of means, base", f"augmented (≤ {DELTA_E_BAR:g})",
              "mean ΔE2000 of pixels, base", "augmented"]  # fmt: skip
    return markdown_table(header, lines)
