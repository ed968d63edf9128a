"""Which modules are mutated, and which tests must notice."""

from __future__ import annotations

from pathlib import Path

SHARES = {
    "fitting": 0.3,
    "texture": 0.15,
    "networks": 0.2,
    "training/synthetic": 0.2,
    "io/photo.py": 0.08,
    "pipeline/inputs.py": 0.07,
}
"""Each package's part of the sample; below src/mien."""

LEFT_OUT = ("networks/backbones.py", "networks/weights_file.py", "__init__.py")
"""Published architectures, held by their weights, and files: not what the networks are given."""

# The first matching entry counts. Files run in this order, and the first failure ends the run: quick ones come first.
TESTS = {
    "fitting/contour.py": ["tests/fitting/test_contour.py"],
    "fitting/landmarks.py": ["tests/fitting/test_landmarks.py"],
    "fitting/lighting.py": ["tests/fitting/test_light.py", "tests/fitting/test_photometric.py"],
    "fitting/maps.py": ["tests/fitting/test_detail.py"],
    "fitting/optimizer.py": ["tests/fitting/test_photometric.py", "tests/fitting/test_detail.py"],
    "fitting/photometric.py": ["tests/fitting/test_photometric.py"],
    "fitting/": ["tests/fitting/test_*.py", "tests/test_reconstruct.py"],
    "texture/": [
        "tests/test_texture_space.py",
        "tests/fitting/test_detail.py",
        "tests/test_detail.py",
        "tests/test_reconstruct.py",
    ],
    "networks/crop_space.py": ["tests/test_encoder.py", "tests/test_mirror.py", "tests/training/test_base.py"],
    "networks/refiner.py": ["tests/test_second_look.py", "tests/test_encoder.py", "tests/training/test_base.py"],
    "networks/detail_unet.py": ["tests/test_detail.py", "tests/training/test_detail.py"],
    "networks/encoder.py": ["tests/test_encoder.py", "tests/test_mirror.py", "tests/training/test_base.py"],
    "training/synthetic/skins.py": ["tests/training/test_store.py"],
    "training/synthetic/store.py": ["tests/training/test_drawn.py"],
    "training/synthetic/detailed_faces.py": ["tests/training/test_detailed.py"],
    "training/synthetic/samples.py": ["tests/training/test_synthetic.py", "tests/training/test_detailed.py"],
    "training/synthetic/scene_cache.py": ["tests/training/test_synthetic.py", "tests/training/test_detailed.py"],
    "training/synthetic/faces.py": ["tests/training/test_synthetic.py", "tests/training/test_drawn.py"],
    "training/synthetic/population.py": ["tests/training/test_synthetic.py", "tests/training/test_detailed.py"],
    # Blemishes, canvas, relief and wrinkles
    "training/synthetic/": ["tests/training/test_relief.py", "tests/training/test_detailed.py"],
    "io/photo.py": ["tests/test_photo.py"],
    "pipeline/inputs.py": ["tests/test_reconstruct.py", "tests/test_second_look.py"],
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
    """The test files that concern a module, relative to the root. Raises LookupError where the map is out of date."""
    name = module.relative_to(root / "src" / "mien").as_posix()
    patterns = next((tests for prefix, tests in TESTS.items() if name.startswith(prefix)), None)
    if patterns is None:
        raise LookupError(f"tests/mutants/suites.py names no tests for {name}; add it to TESTS")
    files = []
    for pattern in patterns:
        below = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
        if not below:
            raise LookupError(f"tests/mutants/suites.py: no file matches {pattern!r}; correct TESTS")
        files += [path for path in below if path not in files]
    return tuple(files)
