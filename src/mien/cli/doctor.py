"""The checks of `mien doctor`: versions, device, native kernels and the packaged files."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from mien.assets import AssetRecord, asset_path, asset_records
from mien.errors import AssetError, BackendUnavailable
from mien.io.formats import readable_formats, unreadable_formats
from mien.rasterizer import rasterize_hard

_PACKAGES = ("mien", "torch", "numpy", "safetensors", "pillow", "jaxtyping", "fsspec", "typer", "rich")


@dataclass(frozen=True)
class Check:
    """One checked part of the installation."""

    subject: str
    """Name of the part."""
    state: str
    """Version, or what was found."""
    passed: bool = True
    """Whether a reconstruction works with it."""


@dataclass(frozen=True)
class AssetCheck:
    """One packaged file."""

    record: AssetRecord
    """Its row of the manifest."""
    problem: str
    """What is wrong with it; empty if nothing is."""


@dataclass(frozen=True)
class Diagnosis:
    """All checks of `mien doctor`."""

    checks: tuple[Check, ...]
    """Versions, device and native code."""
    assets: tuple[AssetCheck, ...]
    """The packaged files."""

    @property
    def passed(self) -> bool:
        """Whether a reconstruction should work here."""
        return all(check.passed for check in self.checks) and not any(a.problem for a in self.assets)

    def content(self) -> dict[str, object]:
        """The checks for JSON: passed, checks (subject, state, passed), assets (name, bytes, licence, problem)."""
        assets = [
            {"name": a.record.name, "bytes": a.record.bytes, "licence": a.record.licence, "problem": a.problem}
            for a in self.assets
        ]
        return {"passed": self.passed, "checks": self.checks, "assets": assets}


def diagnose() -> Diagnosis:
    """Check this installation.

    Returns:
        What was found, damaged files included.

    Raises:
        AssetError: The list of packaged files cannot be read.
    """
    checks = [
        Check("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Check("python", platform.python_version()),
        *(_package(name) for name in _PACKAGES),
        Check("photos", ", ".join(readable_formats())),
        *(Check("not installed", each) for each in unreadable_formats()),
        Check("processor threads", str(torch.get_num_threads())),
        Check("cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "not available; the CPU is used"),
        _rasterizer(),
    ]
    return Diagnosis(tuple(checks), tuple(_asset(record) for record in asset_records()))


def _package(name: str) -> Check:
    try:
        return Check(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "not installed", passed=False)


def _rasterizer() -> Check:
    triangle = torch.tensor([[[-0.5, -0.5, 1.0], [0.0, 0.5, 1.0], [0.5, -0.5, 1.0]]])
    corners = torch.tensor([[0, 1, 2]])
    try:
        rendered = rasterize_hard(triangle, corners, image_size=(8, 8), near=0.5, far=2.0)
        from mien.rasterizer import _native  # pyright: ignore[reportAttributeAccessIssue]  # noqa: PLC0415
    except (BackendUnavailable, ImportError) as error:
        return Check("native rasterizer", str(error), passed=False)
    covered = int((rendered.triangle_ids >= 0).sum())
    # The triangle covers an eighth of the picture, 8 of 64 pixels; up to 2 more or less by rounding at the edges.
    correct = 6 <= covered <= 10
    others = [isa for isa in _native.available_isas().split() if isa != _native.current_isa()]
    state = _native.current_isa() + (f" (also {', '.join(others)})" if others else "")
    return Check("native rasterizer", state if correct else f"{state}, but it renders wrongly", correct)


def _asset(record: AssetRecord) -> AssetCheck:
    try:
        asset_path(record.name)
    except AssetError as error:
        return AssetCheck(record, str(error))
    return AssetCheck(record, "")
