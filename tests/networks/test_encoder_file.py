"""The encoder as a file, in ONNX and in the compiler."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mien.errors import FormatError, ModelMismatch, OutOfMemory
from mien.morphable import MorphableModel, load_model
from mien.networks import FaceEncoder, load_encoder, save_encoder
from mien.networks.crop_space import (
    HEAD_UNITS,
)
from mien.networks.weights_file import current_names
from tests.tiny import tiny_model
from tests.tiny_encoder import SIZE, a_face, inputs_of, off_centre_camera


@pytest.mark.parametrize("kind", ["trained", "pointed", "refining"])
def test_encoders_are_saved_in_half_precision(
    kind: str, request: pytest.FixtureRequest, tiny: MorphableModel, tmp_path: Path
) -> None:
    path, kept = tmp_path / "encoder.safetensors", request.getfixturevalue(kind)
    save_encoder(kept, path, notes={"steps": "3"})
    again = load_encoder(tiny, path)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    # With rounded weights both networks predict the same.
    kept.load_state_dict(again.state_dict())
    inputs = inputs_of(kept, 2)
    with torch.no_grad():
        found = again(*inputs)[-1]
        for name, value in kept(*inputs)[-1].items():
            torch.testing.assert_close(found[name], value)
            assert value.abs().max() > 0.1 * HEAD_UNITS[name], name
    assert not any(p.requires_grad for p in again.parameters())


def test_the_file_keeps_where_the_refiner_starts(from_landmarks: FaceEncoder, tmp_path: Path) -> None:
    save_encoder(from_landmarks, tmp_path / "encoder.safetensors", notes={})
    loaded = load_encoder(load_model(), tmp_path / "encoder.safetensors")
    assert loaded.refine_from == "landmarks"
    camera = off_centre_camera()
    face, points = a_face(loaded, camera), torch.rand(1, 468, 2) * SIZE
    crop = torch.rand(1, 3, SIZE, SIZE)
    again, before = (e.refine(crop, camera, face, landmarks468_px=points) for e in (loaded, from_landmarks))
    torch.testing.assert_close(again.identity, before.identity, atol=5e-3, rtol=0)


def test_files_of_version_0_1_load(refining: FaceEncoder, tiny: MorphableModel, tmp_path: Path) -> None:
    """Version 0.1 called the refiner `look`, and its layers `seen`, `told` and `second`."""
    path = tmp_path / "encoder.safetensors"
    save_encoder(refining, path, notes={})
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    old_names = {"refiner": "look", "map_layer": "seen", "state_layer": "told", "hidden_layer": "second"}

    def old(name: str) -> str:
        parts = name.split(".")
        return ".".join([old_names.get(part, part) for part in parts] if parts[0] == "refiner" else parts)

    header = metadata | {"encoder": metadata["encoder"].replace("refiner", "look")}
    save_file({old(name): tensor for name, tensor in tensors.items()}, path, metadata=header)
    assert any(name.startswith("look.seen.") for name in map(old, tensors))
    loaded = load_encoder(tiny, path).state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in tensors.items())
    prefixed = {
        f"{part}{old(name)}.exp_avg" for part in ("network.", "average.module.", "optimizer.") for name in tensors
    }
    current = current_names(dict.fromkeys(prefixed, torch.zeros(1)))
    assert {
        f"{part}{name}.exp_avg" for part in ("network.", "average.module.", "optimizer.") for name in tensors
    } == set(current)


def test_another_face_model_is_refused(trained: FaceEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with pytest.raises(ModelMismatch, match="another face model"):
        load_encoder(tiny_model(seed=1), path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "mien-encoder-1"}, "has format 'mien-encoder-1'"),
        ({"encoder": "{}"}, "does not hold a network"),
        ({"encoder": "not JSON"}, "does not hold a network"),
        ({"encoder": '{"backbone": "vgg", "image_size": 64, "points": false}'}, "backbone 'vgg' is unknown"),
        ({"encoder": '{"backbone": "resnet50", "image_size": 64, "points": false}'}, "does not hold a network"),
        ({}, "does not hold a network"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 0, "points": false}'}, "image_size=0"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": -4, "points": false}'}, "image_size=-4"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 1099511627776, "points": false}'}, "32 to 1024"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": "x", "points": false}'}, "at `$.image_size`"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 64, "points": "no"}'}, "at `$.points`"),
        ({"encoder": "[" * 100_000}, "nested too deep"),
        ({"encoder": '{"backbone": "efficientnet_lite0", "image_size": 1' + "0" * 5000 + "}"}, "5001 digits"),
    ],
)
def test_other_files_are_refused(tiny: MorphableModel, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "encoder.safetensors"
    header = {"format": "mien-encoder-2", "model_hash": tiny.fingerprint, **metadata}
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(FormatError, match=re.escape(message)):
        load_encoder(tiny, path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "mien-encoder-2"})
    with pytest.raises(FormatError, match="does not hold a network of format mien-encoder-2: 'model_hash'"):
        load_encoder(tiny, path)
    path.write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="not a readable safetensors"):
        load_encoder(tiny, path)


def test_weights_that_are_not_finite_are_refused(trained: FaceEncoder, tiny: MorphableModel, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["heads.identity.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(FormatError, match=r"the weights heads\.\w+\.weight hold values that are not finite"):
        load_encoder(tiny, path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_short_memory_is_not_called_damage(
    trained: FaceEncoder, tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained, path, notes={})

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr("mien.io.tensors.safe_open", fail)
        with pytest.raises(OutOfMemory, match="memory ran out"):
            load_encoder(tiny, path)
    monkeypatch.setattr("mien.networks.encoder.make_backbone", fail)
    with pytest.raises(OutOfMemory, match="memory ran out"):
        load_encoder(tiny, path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tiny: MorphableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"content")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mien.io.tensors.safe_open", refuse)
    with pytest.raises(FormatError, match=r"cannot be read \(Permission denied\); check the file's permissions"):
        load_encoder(tiny, path)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("trained", ["images"]),
        ("pointed", ["images", "points"]),
        ("refining", ["images", "points", "sharp", "lens"]),
        ("from_landmarks", ["images", "points"]),
    ],
)
def test_onnx_predicts_the_same_for_any_batch(
    kind: str, names: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kept = request.getfixturevalue(kind)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "encoder.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses its own deprecated functions
        kept.to_onnx(path)
    session = onnxruntime.InferenceSession(str(path))
    assert [given.name for given in session.get_inputs()] == names
    assert [output.name for output in session.get_outputs()] == list(HEAD_UNITS)
    for count in (1, 3):
        inputs = inputs_of(kept, count)[: len(names)]
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        with torch.no_grad():
            for array, expected in zip(found, kept(*inputs)[-1].values(), strict=True):
                np.testing.assert_allclose(array, expected.numpy(), atol=2e-4, rtol=1e-4)


COMPILED = """
import warnings
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from mien.camera import Camera, Pose
from mien.networks.encoder import FaceEncoder
from tests.tiny import tiny_model
from tests.tiny_encoder import a_face, SIZE, inputs_of, off_centre_camera, randomized, some_points

warnings.simplefilter("ignore")
for points, refiner in ((False, False), (True, False), (True, True)):
    encoder = FaceEncoder("efficientnet_lite0", tiny_model(), image_size=64, points=points, refiner=refiner).eval()
    camera = Camera.from_fov(20.0, image_size=(64, 64), batch=2)
    inputs = encoder.inputs(torch.rand(2, 3, 64, 64), camera, landmarks468_px=torch.rand(2, 468, 2) * 64)
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)(*inputs, refine_steps=1 + refiner)
        plain = encoder(*inputs, refine_steps=1 + refiner)
    pairs = [(c[name], p[name]) for c, p in zip(compiled, plain, strict=True) for name in p]
    print(all(torch.allclose(*pair, atol=1e-6) for pair in pairs), len(plain))
"""


def test_the_compiler_takes_the_whole_network() -> None:
    """One graph without breaks; compiling it with a real back end is PyTorch's part and takes minutes.

    In its own process: the tests' runtime checks of annotations cannot be compiled.
    """
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "True 1\nTrue 1\nTrue 2\n", done.stderr
