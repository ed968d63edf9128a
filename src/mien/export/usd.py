"""USD: a face or a head as .usdz, one file with textures, whose expressions are UsdSkel's blend shapes.

/scene                 the default prim
    camera             the photo's camera, if it is wanted
    head               the SkelRoot, placed before that camera
        skeleton       joints of the head and of the eyeballs, at their centres
        expression     the animation with the weights of the blend shapes
        skin …         a mesh of each part, with its blend shapes
        materials      UsdPreviewSurface
"""
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false, reportMissingModuleSource=false
# (usd-core has no type hints)
# ruff: noqa: PLC0415 (pxr is an extra, and takes 0.2 s to import)

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mien import __version__
from mien.errors import BackendUnavailable
from mien.export.glb_file import jpeg_texture, png_normal_map
from mien.export.morph_targets import MorphTargets
from mien.export.part_materials import PART_MATERIALS
from mien.export.photo_camera import PhotoCamera
from mien.export.rig import Rig, RigPart
from mien.io.result_files import MeshOptions
from mien.result import FAR_M, NEAR_M
from mien.typing import Float, Int

_FOCAL_LENGTH = 50.0
"""Of the camera, in tenths of a unit, as USD counts; only the ratio to its aperture matters."""
_TEXTURE, _NORMAL_MAP = "texture.jpg", "normals.png"
_ALIGNMENT, _ZIP_HEADER_BYTES = 64, 30
_EXTRA, _EXTRA_ID = struct.Struct("<HH"), 0x1986
"""Head of a field of the ZIP header that fills it up; USD's own writer uses this number too."""


def usdz_bytes(
    rig: Rig,
    *,
    texture: Float[np.ndarray, "S S 3"],
    relief: Float[np.ndarray, "D D 3"] | None,
    camera: PhotoCamera | None,
    options: MeshOptions,
) -> bytes:
    """Encode a face or head as USDZ.

    Args:
        rig: The face or head.
        texture: The texture of its skin and eyes; row 0 is v = 1.
        relief: Normals of the skin in tangent space, as a map like the texture; None without relief.
        camera: The photo's camera; None for a face at the origin and no camera.
        options: The unit of lengths.

    Returns:
        The content of the file.

    Raises:
        BackendUnavailable: The package usd-core is missing.
    """
    try:
        from pxr import Usd
    except ImportError as error:
        raise BackendUnavailable(
            f"USD files need the package usd-core ({error}); install it with `pip install 'mien[usd]'`."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        layer = Path(folder, f"{rig.layout.name}.usdc")
        stage = Usd.Stage.CreateNew(str(layer))
        _Scene(stage, rig, options).build(relief=relief is not None, camera=camera)
        stage.GetRootLayer().Save()
        files = {layer.name: layer.read_bytes(), _TEXTURE: jpeg_texture(texture)}
    if relief is not None:
        files[_NORMAL_MAP] = png_normal_map(relief)
    return _package(files)


def _package(files: dict[str, bytes]) -> bytes:
    """The content of a USDZ: a ZIP without compression whose files begin at multiples of 64 bytes, the layer first.

    USD's own writer stores the time, so that equal faces would give different files.
    """
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980
            start = package.tell() + _ZIP_HEADER_BYTES + len(name.encode())
            padding = -(start + _EXTRA.size) % _ALIGNMENT
            entry.extra = _EXTRA.pack(_EXTRA_ID, padding) + bytes(padding)
            archive.writestr(entry, content)
    return package.getvalue()


class _Scene:
    """The stage as it grows."""

    def __init__(self, stage: Any, rig: Rig, options: MeshOptions) -> None:
        self._stage, self._rig = stage, rig
        self._unit, self._units_per_metre = options.units, options.units_per_metre
        self._root = f"/scene/{rig.layout.name}"
        self._movable = [part for part in rig.layout.parts if part.centre is not None]

    def build(self, *, relief: bool, camera: PhotoCamera | None) -> None:
        from pxr import UsdGeom, UsdSkel

        stage, rig = self._stage, self._rig
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1 / self._units_per_metre)
        stage.GetRootLayer().documentation = f"mien {__version__}"
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/scene").GetPrim())
        root = UsdSkel.Root.Define(stage, self._root)
        if camera is not None:
            self._add_camera(camera, root)
        skeleton = self._add_skeleton()
        animation = UsdSkel.Animation.Define(stage, f"{self._root}/expression")
        animation.CreateBlendShapesAttr(list(rig.names))
        weights = animation.CreateBlendShapeWeightsAttr([float(weight) for weight in rig.weights])
        weights.Set(weights.Get(), 0.0)  # Blender 5.0 reads samples in time only
        binding = UsdSkel.BindingAPI.Apply(skeleton.GetPrim())
        binding.CreateAnimationSourceRel().SetTargets([animation.GetPath()])
        used = np.concatenate([rig.shown[part.vertices[part.used]] for part in rig.layout.parts])
        root.CreateExtentAttr(self._array(np.stack([used.min(0), used.max(0)])))
        for part in rig.layout.parts:
            mesh = self._add_mesh(part, skeleton)
            self._add_blend_shapes(part, mesh)
            self._add_material(part, mesh, relief=relief and part.name == "skin")

    def _array(self, positions: Float[np.ndarray, "N 3"]) -> Any:
        """Positions or their offsets in metres as USD's array in units of the stage."""
        return _vectors(positions * self._units_per_metre)

    def _add_camera(self, camera: PhotoCamera, root: Any) -> None:
        """Place the root, and add the camera at the origin; USD's cameras have the axes of OpenGL."""
        from pxr import Gf, UsdGeom

        x, y, z, w = camera.rotation.tolist()
        root.AddTranslateOp().Set(Gf.Vec3d(*(camera.translation * self._units_per_metre).tolist()))
        root.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Quatd(w, x, y, z))
        root.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(camera.scale, camera.scale, camera.scale))
        eye = UsdGeom.Camera.Define(self._stage, "/scene/camera")
        scale = _FOCAL_LENGTH / camera.focal_px
        (width, height), (left, top) = camera.photo_px, camera.offset_px
        frame_width, frame_height = camera.frame_px
        eye.CreateFocalLengthAttr(_FOCAL_LENGTH)
        eye.CreateHorizontalApertureAttr(scale * width)
        eye.CreateVerticalApertureAttr(scale * height)
        # The middle of the photo from the optical axis, which is the middle of the frame.
        eye.CreateHorizontalApertureOffsetAttr(scale * (left + width / 2 - frame_width / 2))
        eye.CreateVerticalApertureOffsetAttr(scale * (frame_height / 2 - top - height / 2))
        eye.CreateClippingRangeAttr(Gf.Vec2f(NEAR_M * self._units_per_metre, FAR_M * self._units_per_metre))

    def _add_skeleton(self) -> Any:
        from pxr import Gf, UsdSkel, Vt

        name = self._rig.layout.name
        places = [np.zeros(3), *(self._rig.base[part.centre] for part in self._movable)]
        transforms = Vt.Matrix4dArray([
            Gf.Matrix4d().SetTranslate(Gf.Vec3d(*(place.astype(float) * self._units_per_metre).tolist()))
            for place in places
        ])  # fmt: skip
        skeleton = UsdSkel.Skeleton.Define(self._stage, f"{self._root}/skeleton")
        skeleton.CreateJointsAttr([name, *(f"{name}/{part.name}" for part in self._movable)])
        # The first joint is at the origin: the places of the others are the same from it.
        skeleton.CreateBindTransformsAttr(transforms)
        skeleton.CreateRestTransformsAttr(transforms)
        return skeleton

    def _add_mesh(self, part: RigPart, skeleton: Any) -> Any:
        from pxr import Sdf, UsdGeom, UsdSkel, Vt

        rig, rows = self._rig, part.vertices
        mesh = UsdGeom.Mesh.Define(self._stage, f"{self._root}/{part.name}")
        points = self._array(rig.base[rows])
        mesh.CreatePointsAttr(points)
        mesh.CreateExtentAttr(UsdGeom.PointBased.ComputeExtent(points))
        mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(part.triangles), 3))
        mesh.CreateFaceVertexIndicesAttr(_integers(part.triangles))
        mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        mesh.CreateNormalsAttr(_vectors(rig.base_normals[rows]))
        mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        mesh.CreateDoubleSidedAttr(part.name == "skin")  # which is open behind or below
        if part.uv is not None:
            uv = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
                "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex
            )
            uv.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(part.uv, np.float32)))
        binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
        binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
        joint = 0 if part.centre is None else 1 + self._movable.index(part)
        # Per vertex, although all are equal: three.js 0.187 collapses a mesh whose joints are constant primvars.
        binding.CreateJointIndicesPrimvar(constant=False, elementSize=1).Set(_integers(np.full(len(rows), joint)))
        binding.CreateJointWeightsPrimvar(constant=False, elementSize=1).Set(
            Vt.FloatArray.FromNumpy(np.ones(len(rows), np.float32))
        )
        return mesh

    def _add_blend_shapes(self, part: RigPart, mesh: Any) -> None:
        from pxr import UsdSkel

        moved, turned = part.take(self._rig.moved), part.take(self._rig.turned)
        names, paths = [], []
        for index, name in enumerate(self._rig.names):
            rows = np.union1d(moved.target(index)[0], turned.target(index)[0])
            if not len(rows):
                continue
            shape = UsdSkel.BlendShape.Define(self._stage, mesh.GetPath().AppendChild(name))
            shape.CreatePointIndicesAttr(_integers(rows))
            shape.CreateOffsetsAttr(self._array(_at_rows(moved, index, rows)))
            shape.CreateNormalOffsetsAttr(_vectors(_at_rows(turned, index, rows)))
            names.append(name)
            paths.append(shape.GetPath())
        binding = UsdSkel.BindingAPI(mesh.GetPrim())
        binding.CreateBlendShapesAttr(names)
        binding.CreateBlendShapeTargetsRel().SetTargets(paths)

    def _add_material(self, part: RigPart, mesh: Any, *, relief: bool) -> None:
        from pxr import Gf, Sdf, UsdShade

        known, path = PART_MATERIALS[part.name], f"{self._root}/materials/{part.name}"
        self._stage.DefinePrim(f"{self._root}/materials", "Scope")
        material = UsdShade.Material.Define(self._stage, path)
        surface = UsdShade.Shader.Define(self._stage, f"{path}/surface")
        surface.CreateIdAttr("UsdPreviewSurface")
        surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(known.roughness)
        surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
        colour = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
        if known.colour is not None:
            colour.Set(Gf.Vec3f(*known.colour))
        else:
            texture = self._add_texture(path, "texture", _TEXTURE, space="sRGB")
            colour.ConnectToSource(texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        if relief:
            normals = self._add_texture(path, "normals", _NORMAL_MAP, space="raw")
            normals.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
            normals.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
            normal = surface.CreateInput("normal", Sdf.ValueTypeNames.Normal3f)
            normal.ConnectToSource(normals.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        output = surface.CreateOutput("surface", Sdf.ValueTypeNames.Token)
        material.CreateSurfaceOutput().ConnectToSource(output)
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)

    def _add_texture(self, material: str, name: str, file: str, *, space: str) -> Any:
        """A shader that reads a picture at the texture coordinates."""
        from pxr import Sdf, UsdShade

        reader = UsdShade.Shader.Define(self._stage, f"{material}/st")
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        texture = UsdShade.Shader.Define(self._stage, f"{material}/{name}")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(f"./{file}"))
        texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
        for axis in ("wrapS", "wrapT"):
            texture.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("clamp")
        texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(
            reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        )
        return texture


def _at_rows(targets: MorphTargets, index: int, rows: Int[np.ndarray, "K"]) -> Float[np.ndarray, "K 3"]:
    """The offsets of one target at ascending rows that contain its own; zero at the others."""
    offsets = np.zeros((len(rows), 3), np.float32)
    own, values = targets.target(index)
    offsets[np.searchsorted(rows, own)] = values
    return offsets


def _vectors(values: Float[np.ndarray, "N 3"]) -> Any:
    from pxr import Vt

    return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values, np.float32))


def _integers(values: Int[np.ndarray, "*s"]) -> Any:
    from pxr import Vt

    return Vt.IntArray.FromNumpy(np.ascontiguousarray(values, np.int32).reshape(-1))
