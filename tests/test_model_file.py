"""mien's own model file: written and read bit by bit, and refused by FormatError whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mien.errors import FormatError, OutputError
from mien.morphable import MorphableModel, load_model, save_model
from mien.morphable.formats import read_model
from mien.morphable.formats.generic import write_generic
from mien.morphable.formats.source import SourceModel
from mien.morphable.skinning import Skinning
from tests.tiny import tiny_model


def model_with_every_part() -> MorphableModel:
    tiny = tiny_model()
    generator = torch.Generator().manual_seed(1)
    count = len(tiny.mean)
    arrays = {key: tiny.get_buffer(key) for key in dict(tiny.named_buffers())}
    arrays |= {
        "blendshape_basis": torch.randn(3, count, 3, generator=generator) * 1e-3,
        "joint_regressor": torch.rand(2, count, generator=generator) / count,
        "skin_weights": torch.rand(count, 2, generator=generator),
        "pose_basis": torch.randn(9, count, 3, generator=generator) * 1e-4,
        "joint_parents": torch.tensor([-1, 0]),
    }
    return MorphableModel(
        "all", arrays, expression_names=tiny.expression_names, licence="none", expression_kind="deviation",
        blendshape_names=("a", "b", "c"), notes=("albedo: transferred",),
    )  # fmt: skip


def test_a_model_with_every_part_survives_saving(tmp_path: Path) -> None:
    model = model_with_every_part()
    save_model(model, tmp_path / "a.safetensors")
    again = load_model(tmp_path / "a.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for name in ("name", "licence", "expression_names", "expression_kind", "blendshape_names", "notes"):
        assert getattr(again, name) == getattr(model, name)
    assert again.blendshapes[0] == ("a", "b", "c")
    assert tiny_model().blendshapes[0] == tiny_model().expression_names
    assert again.expression_range == (-3.0, 3.0)


def test_the_old_name_of_blendshapes_still_works_with_a_warning() -> None:
    model = model_with_every_part()
    with pytest.warns(DeprecationWarning, match="blendshapes"):
        names, basis = model.actions
    assert names == ("a", "b", "c")
    assert basis is model.blendshapes[1]


def test_the_packaged_model_survives_both_formats_it_can_be_written_in(tmp_path: Path) -> None:
    model = load_model()
    save_model(model, tmp_path / "a.safetensors")
    own = load_model(tmp_path / "a.safetensors")
    source = SourceModel(
        name=model.name, family="generic", licence=model.licence, mean=model.mean.numpy(),
        triangles=model.triangles.numpy(), identity_basis=model.identity_basis.numpy(),
        expression_basis=model.expression_basis.numpy(), expression_names=model.expression_names,
        expression_kind="strength", albedo_mean=model.albedo_mean.numpy(), albedo_basis=model.albedo_basis.numpy(),
        uv=model.uv.numpy(), landmarks=dict(enumerate(model.landmarks68.tolist())),
        contour_candidates=model.contour_candidates.numpy(), mirror=model.mirror.numpy(),
    )  # fmt: skip
    write_generic(tmp_path / "a.npz", source)
    generic = read_model(tmp_path / "a.npz")
    for name in ("mean", "identity_basis", "expression_basis", "albedo_mean", "albedo_basis", "uv", "triangles"):
        whole = getattr(model, name).numpy()
        for other in (getattr(own, name).numpy(), getattr(generic, name)):
            assert np.abs(other - whole).max() <= 1e-6 * np.abs(whole).max(), name


def write(path: Path, *, metadata: dict[str, Any] | None = None, **changed: torch.Tensor | None) -> Path:
    model = tiny_model()
    arrays = {key: value.contiguous() for key, value in model.state_dict().items()} | changed
    described = {
        "format": "mien-model-1", "name": "t", "licence": "l", "length_unit_m": "1",
        "expression_names": json.dumps(model.expression_names),
    } | (metadata or {})  # fmt: skip
    stored = {key: value for key, value in arrays.items() if value is not None}
    save_file(stored, path, {key: value for key, value in described.items() if value is not None})
    return path


def changed_at(name: str, value: float) -> dict[str, torch.Tensor]:
    array = tiny_model().get_buffer(name).clone().contiguous()
    array.view(-1)[3] = value
    return {name: array}


def joints(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    whole = model_with_every_part().state_dict()
    names = {"joint_regressor": "joint_regressor", "skin_weights": "weights", "pose_basis": "pose_basis"}
    arrays = {key: whole[f"skinning.{name}"] for key, name in names.items()}
    return arrays | {"joint_parents": torch.tensor([-1, 0])} | changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "mean is missing"),
        (changed_at("mean", torch.nan), "mean holds values"),
        (changed_at("albedo_basis", torch.inf), "albedo_basis holds values"),
        (changed_at("triangles", 525), "triangles holds an index outside"),
        (changed_at("mirror", -1), "mirror holds an index outside"),
        (changed_at("contour_candidates", -2), "contour_candidates holds an index outside"),
        (changed_at("mediapipe_triangles", 10**6), "mediapipe_triangles holds an index outside"),
        ({"uv": torch.zeros(525, 3)}, r"uv is \(525, 3\)"),
        ({"mask_skin": torch.zeros(5)}, r"mask_skin is \(5,\)"),
        ({"expression_basis": torch.zeros(9, 525, 3)}, "expression_basis is"),
        ({"joint_parents": torch.tensor([-1])}, "expected all four"),
        (joints(joint_parents=torch.tensor([-1, 2])), "joint_parents holds an index outside"),
        (joints(joint_parents=torch.tensor([-1, 1])), "each parent before its children"),
        (joints(joint_parents=torch.tensor([0, 0])), "each parent before its children"),
        (joints(pose_basis=torch.zeros(8, 525, 3)), "expected 9 for each of 1 joints"),
        ({"triangles": tiny_model().triangles.float()}, "triangles is torch.float32"),
        ({"mean": tiny_model().mean.int()}, "mean is torch.int32"),
        ({"metadata": {"format": "other"}}, "the format is 'other'"),
        ({"metadata": {"length_unit_m": "wide"}}, "metadata is damaged"),
        ({"metadata": {"length_unit_m": "nan"}}, "length_unit_m=nan"),
        ({"metadata": {"name": None}}, "metadata is damaged"),
        ({"metadata": {"expression_names": "[1]"}}, "expression_names in the metadata: damaged"),
        ({"metadata": {"expression_names": "["}}, "metadata: damaged, not JSON"),
        ({"metadata": {"expression_kind": "mood"}}, "expression_kind='mood'"),
    ],
)
def test_inconsistent_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_model(write(tmp_path / "a.safetensors", **changes))


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 30):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            load_model(path)
    with pytest.raises(FormatError, match=r"nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")


def test_an_unwritable_path_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tiny_model(), tmp_path / "missing" / "a.safetensors")


def skinning() -> Skinning:
    """Two joints on a bar along x: the root at 0, its child at 1; the second half hangs on the child."""
    regressor = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    weights = torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0]])
    basis = torch.zeros(9, 3, 3)
    basis[1, 2, 2] = 0.5  # R[0, 1] of the child lifts the tip along z
    return Skinning(regressor.double(), weights.double(), basis.double(), torch.tensor([-1, 0]))


def test_joints_turn_what_hangs_on_them() -> None:
    bar = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]], dtype=torch.float64)
    still = torch.zeros(1, 2, 3, dtype=torch.float64)
    assert torch.equal(skinning()(bar, still), bar)
    turned = still.clone()
    turned[0, 1, 2] = torch.pi / 2
    # The tip goes up around the child; R[0, 1] = -1 moves it by -0.5 along z.
    assert torch.allclose(skinning()(bar, turned)[0, 2], torch.tensor([1.0, 1.0, -0.5]).double(), atol=1e-9)
    whole = still.clone()
    whole[0, 0, 2] = torch.pi / 2
    expected = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 2, 0]]).double()
    assert torch.allclose(skinning()(bar, whole)[0], expected, atol=1e-9)
    assert torch.autograd.gradcheck(skinning(), (bar.requires_grad_(), turned.requires_grad_()))
