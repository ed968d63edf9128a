"""The results of `benchmarks/detail.py` per face, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from likeness_metrics import LikenessRow
from skin_tone import ToneGroup

from mien.evaluation.report import markdown_table

LEAST_RELIEF_MM = 0.04
"""Root mean square of fine relief on visible texels from which a face counts as wrinkled. Two synthetic faces in five
reach it; pores and fuller cheeks of the others are not wrinkles."""
DEEP_RELIEF_MM = 0.1
"""The same for deep wrinkles, as of old faces: half of the wrinkled ones reach it, and few lie just below."""
RELIEF_BAR, PHOTOMETRIC_BAR, DELTA_E_BAR = 0.6, 0.4, 4.0


@dataclass(frozen=True)
class SyntheticFaceDetail:
    """One synthetic face with one set of coefficients."""

    name: str
    base: str
    """Which coefficients: ground truth ("gt"), or those of a "fit" to the synthetic photo."""
    gt_rms_mm: float
    gt_fine_rms_mm: float
    predicted_rms_mm: float
    correlation: float
    fine_correlation: float
    fine_covariance_mm2: float
    predicted_fine_variance_mm2: float
    gt_fine_variance_mm2: float
    coarse_vertex_mm: float
    """Mean distance of visible vertices without displacement to the ground-truth surface with displacement."""
    detail_vertex_mm: float


@dataclass(frozen=True)
class PortraitDetail:
    """One portrait."""

    file: str
    tone: ToneGroup
    likeness: LikenessRow
    coarse_nme51: float
    detail_nme51: float
    coarse_delta_e: float
    """CIEDE2000 between the mean colours of photo and rendering inside the mask."""
    detail_delta_e: float
    coarse_pixel_delta_e: float
    """The mean of CIEDE2000 over the pixels inside the mask."""
    detail_pixel_delta_e: float
    offset_saturation: float
    """Share of texels whose colour leaves [0, 1]."""
    displacement_saturation: float
    coarse_laplacian_mm2: float
    detail_laplacian_mm2: float
    displacement_asymmetry_mm: float
    offset_asymmetry: float


@dataclass(frozen=True)
class DetailResults:
    synthetic: tuple[SyntheticFaceDetail, ...]
    portraits: tuple[PortraitDetail, ...]


def synthetic_report(rows: Sequence[SyntheticFaceDetail]) -> str:
    lines = []
    for base in ("gt", "fit"):
        wrinkled = [r for r in rows if r.base == base and r.gt_fine_rms_mm >= LEAST_RELIEF_MM]
        deep = [r for r in wrinkled if r.gt_fine_rms_mm >= DEEP_RELIEF_MM]
        flat = [r for r in rows if r.base == base and r.gt_rms_mm == 0]
        lines.append(
            [
                base,
                len(wrinkled),
                f"{pooled_correlation(wrinkled):.3f}",
                _spread_of([r.fine_correlation for r in wrinkled], "{:.3f}"),
                len(deep),
                _spread_of([r.fine_correlation for r in deep], "{:.3f}"),
                _spread_of([r.correlation for r in wrinkled], "{:.3f}"),
                _spread_of([r.coarse_vertex_mm for r in wrinkled], "{:.3f}"),
                _spread_of([r.detail_vertex_mm for r in wrinkled], "{:.3f}"),
                len(flat),
                _spread_of([r.predicted_rms_mm for r in wrinkled], "{:.3f}"),
                _spread_of([r.predicted_rms_mm for r in flat], "{:.3f}"),
            ]
        )
    header = ["base", "wrinkled faces", f"fine correlation over all (≥ {RELIEF_BAR})", "mean per face",
              "deep ones", "mean per face", "whole correlation", "vertex error, mm", "with displacement",
              "flat faces", "predicted relief on wrinkled, mm", "on flat, mm"]  # fmt: skip
    return markdown_table(header, lines)


def pooled_correlation(rows: Sequence[SyntheticFaceDetail]) -> float:
    """Pearson's correlation of fine relief over the texels of all faces, each about its own mean."""
    covariance, predicted, gt = (
        sum(getattr(r, name) for r in rows)
        for name in ("fine_covariance_mm2", "predicted_fine_variance_mm2", "gt_fine_variance_mm2")
    )
    return covariance / np.sqrt(predicted * gt) if predicted * gt > 0 else np.nan


def _spread_of(values: Sequence[float], form: str) -> str:
    finite = np.array([v for v in values if np.isfinite(v)])
    if len(finite) == 0:
        return "–"
    return f"{form.format(finite.mean())} ± {form.format(finite.std())}"


def portrait_report(rows: Sequence[PortraitDetail]) -> str:
    base, detail = (np.array([getattr(r.likeness, f"{n}_error") for r in rows]) for n in ("coarse", "detail"))
    gain = 1 - detail.mean() / base.mean()
    pairs = [
        ("photometric error inside the mask", base, detail, "{:.4f}"),
        ("landmark error, NME51 %", [100 * r.coarse_nme51 for r in rows], [100 * r.detail_nme51 for r in rows],
         "{:.3f}"),
        ("verified %", [100 * r.likeness.coarse.verified for r in rows],
         [100 * r.likeness.detail.verified for r in rows], "{:.1f}"),
        ("verified alone %", [100 * r.likeness.coarse_alone.verified for r in rows],
         [100 * r.likeness.detail_alone.verified for r in rows], "{:.1f}"),
        ("identity distance", [r.likeness.coarse.distance for r in rows], [r.likeness.detail.distance for r in rows],
         "{:.3f}"),
        ("Laplacian energy, mm²", [r.coarse_laplacian_mm2 for r in rows], [r.detail_laplacian_mm2 for r in rows],
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
                _spread_of([r.coarse_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.coarse_pixel_delta_e for r in of_group], "{:.2f}"),
                _spread_of([r.detail_pixel_delta_e for r in of_group], "{:.2f}"),
            ]
        )
    header = ["tone", "portraits", "ΔE2000 of means, base", f"augmented (≤ {DELTA_E_BAR:g})",
              "mean ΔE2000 of pixels, base", "augmented"]  # fmt: skip
    return markdown_table(header, lines)
