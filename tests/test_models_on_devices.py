"""Files are written on the CPU, wherever the model of the reconstructor is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mien.export
from mien.export import write_mesh, write_reconstruction, write_turntable
from mien.morphable import MorphableModel
from mien.morphable.per_model import _copy_on_cpu, on_cpu, per_model
from mien.result import Reconstruction
from tests.tiny_face import tiny_model, tiny_photo, tiny_reconstruction


def test_a_model_on_the_cpu_is_not_copied() -> None:
    model = tiny_model()
    assert on_cpu(model) is model


def test_the_copy_of_another_device_is_kept() -> None:
    model = tiny_model()
    copied = per_model(model, _copy_on_cpu)
    assert copied is not model
    assert copied is per_model(model, _copy_on_cpu)
    assert torch.equal(copied.mean, model.mean)


Writer = Callable[[Reconstruction, MorphableModel, Path], object]


@pytest.mark.parametrize(
    "write",
    [
        lambda face, model, out: write_reconstruction(face, model, None, out, "glb"),
        lambda face, model, out: write_mesh(face, model, out / "a.ply"),
        lambda face, model, out: face.glb_bytes(model),
        lambda face, model, out: write_turntable(face, out / "a.webp", model=model),
    ],
)
def test_all_writers_use_the_copy(write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked(model: MorphableModel) -> MorphableModel:
        raise Asked

    monkeypatch.setattr(mien.export, "on_cpu", asked)
    with pytest.raises(Asked):
        write(tiny_reconstruction(), tiny_model(), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_result_is_written_with_a_model_on_a_gpu(tmp_path: Path) -> None:
    write_reconstruction(tiny_reconstruction(), tiny_model().cuda(), tiny_photo(), tmp_path, "glb,sheet,maps")
    assert (tmp_path / "sheet.png").exists()
