from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mien
from mien.threads import SPIN_COUNT

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
    "Track",
    "fit",
    "load_model",
    "read_photo",
    "render",
    "track",
    "write_reconstruction",
    "write_turntable",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(mien._HOMES) == PUBLIC
    assert sorted(mien.__all__) == sorted([*PUBLIC, "__version__"])
    for name in PUBLIC:
        assert name in dir(mien)
        assert getattr(mien, name).__name__ == name
    assert sorted(dir(mien)) == sorted(mien.__all__)  # nothing else comes up in a notebook
    with pytest.raises(AttributeError, match="reconstructor"):
        _ = mien.reconstructor


def test_type_checkers_see_the_same_names() -> None:
    """Type checkers read the imports under TYPE_CHECKING; the program reads the table."""
    tree = ast.parse(Path(mien.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == mien._HOMES


def test_the_command_also_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mien", "--version"], check=True, capture_output=True, text=True)
    assert mien.__version__ in done.stdout


def test_importing_mien_does_not_import_torch() -> None:
    program = "import sys, mien; assert 'torch' not in sys.modules; mien.Camera; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_import_is_light() -> None:
    """The public names import no compiler, no web server, no Triton, no scipy and no OpenCV."""
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


def test_the_command_imports_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """Torch takes a second: the help and the process that gives photos to others go without it."""
    program = f"""
        import sys
        from pathlib import Path
        import mien.cli.app
        from mien.io.photo_arguments import find_arguments
        from mien.scale.output_folder import open_output
        from mien.scale.photo_work import PhotoSettings
        Path({str(tmp_path / "a.jpg")!r}).touch()
        (photo,) = find_arguments([{str(tmp_path)!r}])
        with open_output(Path({str(tmp_path / "out")!r})) as output:
            assert output.folder_of(photo).earlier(PhotoSettings().options) == (None, "")
        print(sorted({{"torch", "numpy", "PIL", "jaxtyping", "fsspec"}} & set(sys.modules)))
        import torch
        before = set(sys.modules)
        import mien.pipeline
        import mien.export
        new = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print(sorted(new & {{"scipy", "skimage", "matplotlib", "lightning", "triton", "aiohttp", "ray", "onnx"}}))
        print(sorted({{"torch._dynamo", "torch._inductor", "mien.training", "mien.registration"}} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[:3] == ["[]", "[]", "[]"]


SPINS = {"GOMP_SPINCOUNT": str(SPIN_COUNT)} if sys.platform == "linux" else {}


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"MKL_CBWR": "AUTO", **SPINS}),
        ({"MKL_CBWR": "COMPATIBLE"}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, {"MKL_CBWR": "AUTO"}),
        ({"OMP_WAIT_POLICY": "active"}, {"MKL_CBWR": "AUTO"}),
    ],
)
def test_importing_mien_sets_two_variables_unless_they_are_set_and_nothing_else(
    given: dict[str, str], added: dict[str, str]
) -> None:
    ours = ("MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in ours} | given
    program = """
        import json, os
        before = dict(os.environ)
        import mien
        assert not before.keys() - os.environ.keys()
        print(json.dumps({key: value for key, value in os.environ.items() if before.get(key) != value}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == added


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    from mien.cli import main

    assert mien.__version__ == importlib.metadata.version("mien")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mien {mien.__version__}\n"
