"""USDZ, read with usd-core: the same shape, blend shapes, textures and camera, and nothing for USD's validators."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.errors import BackendUnavailable
from mien.export import write_mesh
from mien.io.result_files import MeshOptions
from mien.morphable import load_model
from tests.test_rig import seen, smiling_face
from tests.tiny_face import tiny_model, tiny_reconstruction

pytestmark = pytest.mark.external


def opened(path: Path) -> Any:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd

    return Usd.Stage.Open(str(path))


def shown(stage: Any, mesh: str, weights: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals of a mesh with its blend shapes, by UsdSkel's definition."""
    from pxr import UsdGeom, UsdSkel

    prim = UsdGeom.Mesh.Get(stage, mesh)
    points, normals = (np.array(attr.Get(), float) for attr in (prim.GetPointsAttr(), prim.GetNormalsAttr()))
    binding = UsdSkel.BindingAPI(prim.GetPrim())
    names, targets = binding.GetBlendShapesAttr().Get(), binding.GetBlendShapeTargetsRel().GetTargets()
    for name, target in zip(names, targets, strict=True):
        shape = UsdSkel.BlendShape.Get(stage, target)
        rows = np.array(shape.GetPointIndicesAttr().Get())
        points[rows] += weights[name] * np.array(shape.GetOffsetsAttr().Get())
        normals[rows] += weights[name] * np.array(shape.GetNormalOffsetsAttr().Get())
    return points, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def weights_of(stage: Any, root: str) -> dict[str, float]:
    from pxr import UsdSkel

    animation = UsdSkel.Animation.Get(stage, f"{root}/expression")
    return dict(zip(animation.GetBlendShapesAttr().Get(), animation.GetBlendShapeWeightsAttr().Get(), strict=True))


@pytest.mark.parametrize(("units", "factor"), [("m", 1), ("cm", 100)])
def test_a_usdz_shows_the_photos_face(tmp_path: Path, units: str, factor: float) -> None:
    from mien.export.surface import unit_normals

    face = tiny_reconstruction()
    write_mesh(face, tiny_model(), tmp_path / "face.usdz", MeshOptions.parsed("face", units=units))
    stage = opened(tmp_path / "face.usdz")
    from pxr import UsdGeom

    assert UsdGeom.GetStageMetersPerUnit(stage) == pytest.approx(1 / factor)
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    weights = weights_of(stage, "/scene/face")
    assert weights == {"jawOpen": 0.5, "mouthSmileLeft": 0.25, "tongueOut": 0.0}
    points, normals = shown(stage, "/scene/face/skin", weights)
    np.testing.assert_allclose(points, face.vertices_model * factor, atol=3e-6 * factor)
    exact = unit_normals(face.vertices_model, face.triangles)
    assert np.degrees(np.arccos((normals * exact).sum(1).clip(-1, 1))).max() < 2
    st = UsdGeom.PrimvarsAPI(stage.GetPrimAtPath("/scene/face/skin")).GetPrimvar("st")
    np.testing.assert_allclose(np.array(st.Get()), face.uv, atol=1e-6)


def test_a_head_has_a_mesh_for_each_part_and_joints_at_the_eyes(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import UsdSkel, UsdValidation

    from mien.export.rig import make_rig

    model = load_model()
    smiling = smiling_face(model)
    write_mesh(smiling, model, tmp_path / "head.usdz", MeshOptions.parsed("head", embed_camera=True))
    stage = opened(tmp_path / "head.usdz")
    rig = make_rig(smiling, model, "head")
    weights = weights_of(stage, "/scene/head")
    assert list(weights) == list(model.expression_names)
    for part in rig.layout.parts:
        points, _ = shown(stage, f"/scene/head/{part.name}", weights)
        np.testing.assert_allclose(points[part.used], rig.shown[part.vertices[part.used]], atol=5e-6)
    skeleton = UsdSkel.Skeleton.Get(stage, "/scene/head/skeleton")
    assert list(skeleton.GetJointsAttr().Get()) == ["head", "head/eye_left", "head/eye_right"]
    places = [np.array(matrix.ExtractTranslation()) for matrix in skeleton.GetBindTransformsAttr().Get()]
    centres = [rig.base[part.centre] for part in rig.layout.parts if part.centre is not None]
    np.testing.assert_allclose(places, [np.zeros(3), *centres], atol=1e-6)
    for name, joint in {"skin": 0, "eye_left": 1, "eye_right": 2}.items():
        prim = stage.GetPrimAtPath(f"/scene/head/{name}")
        binding, vertices = UsdSkel.BindingAPI(prim), len(prim.GetAttribute("points").Get())
        for primvar, value in ((binding.GetJointIndicesPrimvar(), joint), (binding.GetJointWeightsPrimvar(), 1.0)):
            assert primvar.GetInterpolation() == "vertex"  # three.js 0.187 collapses meshes with constant ones
            assert list(primvar.Get()) == [value] * vertices
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    found = UsdValidation.ValidationContext(validators).Validate(stage)
    assert [error.GetMessage() for error in found] == []
    with zipfile.ZipFile(tmp_path / "head.usdz") as package:
        assert package.namelist() == ["head.usdc", "texture.jpg"]


def test_the_camera_of_a_usdz_sees_the_photo(tmp_path: Path) -> None:
    face, tiny = tiny_reconstruction(), tiny_model()
    face = seen(face)
    write_mesh(face, tiny, tmp_path / "face.usdz", MeshOptions.parsed("face", embed_camera=True, units="mm"))
    stage = opened(tmp_path / "face.usdz")
    from pxr import Gf, UsdGeom

    frustum = UsdGeom.Camera.Get(stage, "/scene/camera").GetCamera().frustum
    to_clip = np.array(frustum.ComputeViewMatrix() * frustum.ComputeProjectionMatrix())
    to_world = np.array(UsdGeom.XformCache().GetLocalToWorldTransform(stage.GetPrimAtPath("/scene/face")))
    points, _ = shown(stage, "/scene/face/skin", weights_of(stage, "/scene/face"))
    clip = np.c_[points, np.ones(len(points))] @ to_world @ to_clip
    pixels = (1 + clip[:, :2] / clip[:, 3:] * (1, -1)) / 2 * face.image_size
    np.testing.assert_allclose(pixels, face.xy, atol=5e-3)
    assert Gf.IsClose(frustum.nearFar.min, 10.0, 1e-3)


def test_files_in_a_package_are_aligned_and_equal_for_equal_faces(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    slope = np.linspace(0, 0.006, 16, dtype=np.float32)[None].repeat(16, 0)
    face, tiny = replace(tiny_reconstruction(), displacement=slope), tiny_model()
    for name in ("a.usdz", "b.usdz"):
        write_mesh(face, tiny, tmp_path / name)
    content = (tmp_path / "a.usdz").read_bytes()
    assert content == (tmp_path / "b.usdz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        assert package.namelist() == ["face.usdc", "texture.jpg", "normals.png"]
        for entry in package.infolist():
            data = package.read(entry)
            assert entry.compress_type == zipfile.ZIP_STORED
            assert content.index(data) % 64 == 0


def test_without_usd_core_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'mien\[usd\]'"):
        write_mesh(tiny_reconstruction(), tiny_model(), tmp_path / "face.usdz")
    assert list(tmp_path.iterdir()) == []
