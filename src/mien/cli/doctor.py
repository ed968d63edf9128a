"""What `mien doctor` looks at: versions, device, native kernels, and whether the packaged assets are
whole."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from mien.assets import AssetRecord, asset_path, asset_records
from mien.errors import AssetError, BackendUnavailable
from mien.rasterizer import rasterize_hard

_PACKAGES = ("mien", "torch", "numpy", "safetensors", "pillow", "jaxtyping", "typer", "rich")


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    state: str
    healthy: bool = True


@dataclass(frozen=True)
class AssetFinding:
    """One packaged file: its row of the manifest, and what is wrong with it (empty if nothing is)."""

    record: AssetRecord
    problem: str


@dataclass(frozen=True)
class Examination:
    """Everything `mien doctor` found."""

    findings: tuple[Finding, ...]
    assets: tuple[AssetFinding, ...]

    @property
    def healthy(self) -> bool:
        """Whether a reconstruction can be expected to work."""
        return all(finding.healthy for finding in self.findings) and not any(a.problem for a in self.assets)


def examine() -> Examination:
    """Look at this installation; raises AssetError only where the list of assets itself cannot be read."""
    findings = [
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("python", platform.python_version()),
        *(_package(name) for name in _PACKAGES),
        Finding("processor threads", str(torch.get_num_threads())),
        Finding("cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the CPU is used"),
        _rasterizer(),
    ]
    return Examination(tuple(findings), tuple(_asset(record) for record in asset_records()))


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", healthy=False)


def _rasterizer() -> Finding:
    triangle = torch.tensor([[[-0.5, -0.5, 1.0], [0.0, 0.5, 1.0], [0.5, -0.5, 1.0]]])
    corners = torch.tensor([[0, 1, 2]])
    try:
        drawn = rasterize_hard(triangle, corners, image_size=(8, 8), near=0.5, far=2.0)
        from mien.rasterizer import _native  # pyright: ignore[reportAttributeAccessIssue]  # noqa: PLC0415
    except (BackendUnavailable, ImportError) as error:
        return Finding("native rasterizer", str(error), healthy=False)
    covered = int((drawn.triangle_ids >= 0).sum())
    # 1 × 1 in NDC is a half of the picture's area halved again: 8 of 64 pixels, whichever way edges are
    # rounded.
    drawn_right = 6 <= covered <= 10
    others = [isa for isa in _native.available_isas().split() if isa != _native.current_isa()]
    state = _native.current_isa() + (f" (also {', '.join(others)})" if others else "")
    return Finding("native rasterizer", state if drawn_right else f"{state}, but it draws wrongly", drawn_right)


def _asset(record: AssetRecord) -> AssetFinding:
    try:
        asset_path(record.name)
    except AssetError as error:
        return AssetFinding(record, str(error))
    return AssetFinding(record, "")
