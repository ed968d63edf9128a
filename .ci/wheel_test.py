"""Install a wheel as a user would, without a compiler, and reconstruct a face with it.

Usage: python .ci/wheel_test.py FOLDER      the folder holds the wheel; `make wheel-test` builds it first

A new virtual environment gets PyTorch, the wheel and its dependencies, all from wheels, and sees no compiler and no
other environment. There `mien reconstruct` turns the public-domain photo of examples/ into a GLB, which is read here.
TORCH is the requirement for PyTorch (default: that of constraints.txt); TORCH_INDEX is used where pip's index lacks it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "wheel-test"
BIN = FOLDER / "venv" / ("Scripts" if os.name == "nt" else "bin")
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "clang-cl", "cl", "cmake", "ninja", "make")


def environment() -> dict[str, str]:
    """This process's environment, with a PATH that leads to the new environment alone."""
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV", "CC", "CXX"}}
    system = [str(Path(os.environ["SYSTEMROOT"]) / "System32")] if os.name == "nt" else []
    kept["PATH"] = os.pathsep.join([str(BIN), *system])
    found = [name for name in COMPILERS if shutil.which(name, path=kept["PATH"])]
    if found:
        raise SystemExit(f"the PATH of the wheel test holds {', '.join(found)}; it must hold no compiler")
    return kept


def run(*command: str | Path) -> str:
    """Run one program of the new environment and return what it prints."""
    done = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        env=environment(),
        cwd=FOLDER,
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command))} ended with exit code {done.returncode}")
    return done.stdout


def install(wheels: Path) -> None:
    """PyTorch first, then the wheel of the folder that fits this Python, then what it depends on."""
    pinned = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    torch = os.environ.get("TORCH") or (pinned[0] if pinned else "torch")
    pip = ("python", "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:")
    try:
        run(*pip, "--no-deps", torch)
    except SystemExit:
        if not os.environ.get("TORCH_INDEX"):
            raise
        run(*pip, "--no-deps", "--index-url", os.environ["TORCH_INDEX"], torch)
    run(*pip, "--no-deps", "--no-index", "--find-links", wheels.resolve(), "mien")
    run(*pip, "mien")


def check_installation() -> None:
    """The new environment imports its own mien, of the version that pyproject.toml names."""
    declared = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    program = "import mien, mien.rasterizer._native as native; print(mien.__version__, mien.__file__, native.__file__)"
    version, *files = run("python", "-I", "-c", program).split()
    if not declared or version != declared[1]:
        raise SystemExit(f"the wheel is mien {version}; pyproject.toml names {declared and declared[1]}")
    if not all(Path(file).is_relative_to(FOLDER / "venv") for file in files):
        raise SystemExit(f"mien was imported from outside of the new environment: {files}")


def check_glb(path: Path) -> str:
    """Read a GLB's two chunks and compare its accessors with the bytes that are there."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    json_length, json_kind = struct.unpack_from("<I4s", data, 12)
    binary_length, binary_kind = struct.unpack_from("<I4s", data, 20 + json_length)
    if (magic, version, length, json_kind, binary_kind) != (b"glTF", 2, len(data), b"JSON", b"BIN\0"):
        raise SystemExit(f"{path} is no binary glTF 2.0")
    content = json.loads(data[20 : 20 + json_length])
    for view in content["bufferViews"]:
        if view.get("byteOffset", 0) + view["byteLength"] > binary_length:
            raise SystemExit(f"{path}: a buffer view ends after the file's last byte")
    (mesh,) = content["meshes"]
    vertices = {content["accessors"][part["attributes"]["POSITION"]]["count"] for part in mesh["primitives"]}
    targets = mesh["extras"]["targetNames"]
    if min(vertices) < 100 or len(targets) != 52 or len(mesh["weights"]) != 52:
        raise SystemExit(
            f"{path}: {vertices} vertices and {len(targets)} morph targets are no face of the packaged model"
        )
    return f"{len(data) / 1e6:.1f} MB, {len(mesh['primitives'])} primitives, {len(targets)} morph targets"


def main() -> None:
    """Run the test and print what each step took."""
    wheels, started = Path(sys.argv[1]), time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER / "venv", with_pip=True)
    install(wheels)
    check_installation()
    installed = time.perf_counter()
    run("mien", "reconstruct", ROOT / "examples" / "astronaut.png", "--out", FOLDER / "out")
    print(check_glb(FOLDER / "out" / "astronaut" / "face0" / "face.glb"))
    done = time.perf_counter()
    print(f"the wheel works: {installed - started:.0f} s to install, {done - installed:.0f} s to reconstruct")


if __name__ == "__main__":
    main()
