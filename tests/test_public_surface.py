from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mien

PUBLIC = [
    "AssetError",
    "Camera",
    "FaceCoefficients",
    "FitSettings",
    "FitTargets",
    "FormatError",
    "ImageError",
    "MienError",
    "MorphableModel",
    "NoFaceFound",
    "Photo",
    "Pose",
    "Reconstruction",
    "Reconstructor",
    "RenderOutput",
    "fit",
    "load_model",
    "read_photo",
    "render",
    "write_reconstruction",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(mien._HOMES) == PUBLIC
    for name in PUBLIC:
        assert name in dir(mien)
        assert getattr(mien, name).__name__ == name
    with pytest.raises(AttributeError, match="reconstructor"):
        _ = mien.reconstructor


def test_names_are_the_same_for_readers_of_types() -> None:
    """What a type checker sees is imported under TYPE_CHECKING; the table is what runs."""
    tree = ast.parse(Path(mien.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == mien._HOMES


def test_import_waits_for_torch_until_it_is_needed() -> None:
    program = "import sys, mien; assert 'torch' not in sys.modules; mien.Camera; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_import_is_light() -> None:
    """No compiler, no web server, no Triton, and nothing of scipy or OpenCV by accident."""
    program = """
        import sys
        import torch
        before = set(sys.modules)
        import mien
        for name in dir(mien):
            getattr(mien, name)
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(new & {"triton", "cv2", "scipy", "skimage", "matplotlib", "aiohttp", "flask", "typer", "rich"}))
        print([name for name in ("torch._dynamo", "torch._inductor") if name in set(sys.modules) - before])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
