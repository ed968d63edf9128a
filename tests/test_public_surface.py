from __future__ import annotations

import subprocess
import sys
import textwrap

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
    submodules = {name for name in vars(mien) if f"mien.{name}" in sys.modules}
    hook = {"jaxtyping"}  # put there by the test run itself
    names = {name for name in vars(mien) if not name.startswith("_")} - submodules - hook | {"fit"}
    assert sorted(names) == PUBLIC


def test_import_is_light() -> None:
    """No compiler, no web server, no Triton, and nothing of scipy or OpenCV by accident."""
    program = """
        import sys
        import torch
        before = set(sys.modules)
        import mien
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(new & {"triton", "cv2", "scipy", "skimage", "matplotlib", "aiohttp", "flask", "typer", "rich"}))
        print([name for name in ("torch._dynamo", "torch._inductor") if name in set(sys.modules) - before])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
