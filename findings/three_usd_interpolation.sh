#!/usr/bin/env bash
# three 0.187.0 (npm), USDLoader, Node.js 20. usd-core 26.11 (PyPI) writes the file and says what is right.
#
# The loader does not read the interpolation of primvars. It takes indices of a primvar as those of face corners, and any
# other array as values of points if it is as long as the points. So three valid ways to write a triangle with the points
# 2, 0, 1 as its corners come out wrong, without an error or a warning:
#   vertex_indexed  texture coordinates per point, with indices: the corners get those of the points 0, 1, 2
#   face_varying    texture coordinates per corner: the corners get those of the corners 2, 0, 1
#   constant        one joint for all points, UsdSkel's form for rigid parts: only the first point has a weight, the
#                   others fall to the origin, and the mesh cannot be seen
# The fourth, texture coordinates per point without indices, is right.
# Expected: UsdGeomPrimvar::ComputeFlattened's values, and all points at their places.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > write.py <<'EOF'
import json

from pxr import Sdf, Usd, UsdGeom, UsdSkel, Vt

CORNERS = [2, 0, 1]
POINTS = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]


def triangle(stage, path):
    mesh = UsdGeom.Mesh.Define(stage, path)
    mesh.CreatePointsAttr(POINTS)
    mesh.CreateFaceVertexCountsAttr([3])
    mesh.CreateFaceVertexIndicesAttr(CORNERS)
    mesh.CreateSubdivisionSchemeAttr("none")
    return mesh


stage = Usd.Stage.CreateNew("triangles.usda")
UsdGeom.SetStageMetersPerUnit(stage, 1)
right = {}
for name, interpolation, indexed in (
    ("vertex", "vertex", False), ("vertex_indexed", "vertex", True), ("face_varying", "faceVarying", False)
):
    mesh = triangle(stage, f"/{name}")
    uv = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, interpolation)
    uv.Set([(0, 0), (1, 0), (0, 1)])
    if indexed:
        uv.SetIndices(Vt.IntArray([0, 1, 2]))
    values = uv.ComputeFlattened()
    right[name] = [list(values[k]) for k in (CORNERS if interpolation == "vertex" else range(3))]

identity = Vt.Matrix4dArray(1)
identity[0].SetIdentity()
UsdSkel.Root.Define(stage, "/root")
skeleton = UsdSkel.Skeleton.Define(stage, "/root/skeleton")
skeleton.CreateJointsAttr(["head"])
skeleton.CreateBindTransformsAttr(identity)
skeleton.CreateRestTransformsAttr(identity)
binding = UsdSkel.BindingAPI.Apply(triangle(stage, "/root/constant").GetPrim())
binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
binding.CreateJointIndicesPrimvar(constant=True, elementSize=1).Set([0])
binding.CreateJointWeightsPrimvar(constant=True, elementSize=1).Set([1])
right["constant"] = [list(POINTS[k]) for k in CORNERS]
stage.GetRootLayer().Save()
with open("right.json", "w") as file:
    json.dump(right, file)
EOF

cat > check.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { REVISION, Vector3 } from "three";
import { USDLoader } from "three/addons/loaders/USDLoader.js";

const group = new USDLoader().parse(readFileSync("triangles.usda", "utf8"));
group.updateMatrixWorld(true);
const seen = {};
group.traverse((object) => {
  if (!object.isMesh) return;
  const { uv } = object.geometry.attributes;
  seen[object.name] = JSON.stringify([0, 1, 2].map((corner) => uv
    ? [uv.getX(corner), uv.getY(corner)]
    : object.getVertexPosition(corner, new Vector3()).toArray()));
});
const right = JSON.parse(readFileSync("right.json"));
for (const name in right) console.log(`three r${REVISION}, ${name}: ${seen[name]}, right is ${JSON.stringify(right[name])}`);
const described = {
  vertex: "[[0,1],[0,0],[1,0]]", vertex_indexed: "[[0,0],[1,0],[0,1]]", face_varying: "[[0,1],[0,0],[1,0]]",
  constant: "[[0,0,0],[0,0,0],[0,0,0]]",
};
const same = Object.keys(right).filter((name) => seen[name] === JSON.stringify(right[name]));
if (same.join() !== "vertex" || Object.keys(described).some((name) => seen[name] !== described[name])) {
  console.error("the behaviour has changed");
  process.exit(1);
}
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check usd-core==26.11
venv/bin/python write.py
npm install --silent --ignore-scripts --no-audit --no-fund --no-save three@0.187.0
node check.mjs
