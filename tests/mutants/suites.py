"""Which modules are mutated, and which tests must notice."""

from __future__ import annotations

from pathlib import Path

SHARES = {
    "fitting": 0.3,
    "texture": 0.15,
    "networks": 0.2,
    "training/synthetic": 0.2,
    "io/exif.py": 0.02,
    "io/color.py": 0.02,
    "io/tiff.py": 0.02,
    "io/decoding.py": 0.02,
    "pipeline/inputs.py": 0.07,
}
"""Each package's part of the sample; below src/mien."""

LEFT_OUT = ("networks/backbones.py", "networks/weights_file.py", "__init__.py")
"""Published architectures, held by their weights, and files: not what the networks are given."""

_GOLDEN = "tests/test_golden_photos.py::test_photos_give_the_coefficients_of_af0329d"
FIT, NET = f"{_GOLDEN}[astronaut-short]", f"{_GOLDEN}[astronaut-net]"
"""The coefficients of a whole photo: slow, so that they come last."""

# The first entry that the module's path starts with counts. The first failure ends a run: quick files come first.
TESTS = {
    "fitting/contour.py": ["tests/fitting/test_contour.py", FIT],
    "fitting/landmarks.py": ["tests/fitting/test_landmarks.py", FIT],
    "fitting/lighting.py": ["tests/fitting/test_light.py", "tests/fitting/test_photometric.py", FIT],
    "fitting/maps.py": ["tests/fitting/test_detail.py"],
    "fitting/": ["tests/fitting/test_photometric.py", "tests/fitting/test_*.py", "tests/test_reconstruct.py", FIT],
    "texture/": [
        "tests/test_texture_space.py",
        "tests/fitting/test_detail.py",
        "tests/test_detail.py",
        "tests/test_reconstruct.py",
    ],
    "networks/crop_space.py": [
        "tests/test_crop_space.py",
        "tests/networks",
        "tests/test_mirror.py",
        "tests/training/test_coarse.py",
        NET,
    ],
    "networks/refiner.py": [
        "tests/test_refiner.py",
        "tests/networks",
        "tests/training/test_coarse.py",
        NET,
    ],
    "networks/detail_unet.py": ["tests/test_detail.py", "tests/training/test_detail.py"],
    "networks/encoder.py": [
        "tests/networks",
        "tests/test_mirror.py",
        "tests/training/test_coarse.py",
        NET,
    ],
    "networks/encoder_file.py": ["tests/networks/test_encoder_file.py", "tests/test_compatibility.py"],
    "training/synthetic/skins.py": ["tests/training/test_skins.py", "tests/training/test_photo_store.py"],
    "training/synthetic/store.py": ["tests/training/test_synthetic_store.py"],
    "training/synthetic/detailed_faces.py": [
        "tests/training/test_detailed_faces.py",
    ],
    "training/synthetic/faces.py": [
        "tests/training/test_synthetic_faces.py",
        "tests/training/test_synthetic_store.py",
    ],
    "training/synthetic/population.py": [
        "tests/training/test_population.py",
        "tests/training/test_detailed_faces.py",
    ],
    "training/synthetic/s": [  # samples and scene cache
        "tests/training/test_synthetic_faces.py",
        "tests/training/test_detailed_faces.py",
    ],
    "training/synthetic/": [  # blemishes, canvas, relief and wrinkles
        "tests/training/test_blemishes.py",
        "tests/training/test_wrinkles.py",
        "tests/training/test_skin_canvas.py",
        "tests/training/test_relief.py",
        "tests/training/test_golden_statistics.py",
        "tests/training/test_detailed_faces.py",
    ],
    "io/tiff.py": ["tests/test_photo_tiff.py"],
    "io/": ["tests/test_photo.py", "tests/test_photo_color.py", "tests/test_photo_formats.py"],
    "pipeline/inputs.py": ["tests/test_reconstruct.py", "tests/test_refiner.py", NET, FIT],
}


def modules(root: Path) -> dict[str, list[Path]]:
    """The files of each package that are mutated."""
    base = root / "src" / "mien"
    found = {}
    for package in SHARES:
        below = sorted((base / package).rglob("*.py")) if (base / package).is_dir() else [base / package]
        found[package] = [path for path in below if not path.as_posix().endswith(LEFT_OUT)]
    return found


def tests_of(module: Path, root: Path) -> tuple[str, ...]:
    """The tests that concern a module, relative to the root. Raises LookupError if the table is out of date."""
    name = module.relative_to(root / "src" / "mien").as_posix()
    entries = next((tests for prefix, tests in TESTS.items() if name.startswith(prefix)), None)
    if entries is None:
        raise LookupError(f"tests/mutants/suites.py names no tests for {name}; add them to TESTS")
    found = [_matching(entry, root) for entry in entries]
    return tuple(dict.fromkeys(name for names in found for name in names))


def _matching(entry: str, root: Path) -> list[str]:
    pattern, *case = entry.split("::")
    below = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    if below:
        return ["::".join([path, *case]) for path in below]
    raise LookupError(f"tests/mutants/suites.py: no file matches {entry!r}; correct TESTS")
