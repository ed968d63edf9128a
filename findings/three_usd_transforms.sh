#!/usr/bin/env bash
# three 0.187.0 (npm), USDLoader, Node.js 20. usd-core 26.11 (PyPI) writes the file and says what is right.
#
# Transforms of USD that the loader leaves out or changes, without an error or a warning:
#   suffix         xformOp:translate:offset, an operation with a suffix, which lets an object have two of a kind: left out
#   rotate_zyx     xformOp:rotateZYX, and each order of three angles but XYZ: left out
#   negative       xformOp:scale = (-1, -1, -1), a point reflection: it becomes a reflection at the plane x = 0. After
#                  Matrix4.decompose() the loader restores the signs of the scale, but leaves in place the half turn
#                  about x that stands for two of them
# A translation without a suffix, rotateXYZ and a scale of (1, -1, 1) are right.
# Expected: the points at the places of UsdGeom.XformCache.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > write.py <<'EOF'
import json

from pxr import Gf, Usd, UsdGeom

POINT = (1, 2, 3)
stage = Usd.Stage.CreateNew("transforms.usda")
UsdGeom.SetStageMetersPerUnit(stage, 1)
right = {}
for name, add in (
    ("translate", lambda xform: xform.AddTranslateOp().Set((10, 20, 30))),
    ("suffix", lambda xform: xform.AddTranslateOp(opSuffix="offset").Set((10, 20, 30))),
    ("rotate_xyz", lambda xform: xform.AddRotateXYZOp().Set((90, 90, 0))),
    ("rotate_zyx", lambda xform: xform.AddRotateZYXOp().Set((90, 90, 0))),
    ("mirrored", lambda xform: xform.AddScaleOp().Set((1, -1, 1))),
    ("negative", lambda xform: xform.AddScaleOp().Set((-1, -1, -1))),
):
    xform = UsdGeom.Xform.Define(stage, f"/{name}")
    add(xform)
    place = UsdGeom.XformCache().GetLocalToWorldTransform(xform.GetPrim()).Transform(Gf.Vec3d(POINT))
    right[name] = [round(value, 4) + 0 for value in place]
stage.GetRootLayer().Save()
with open("right.json", "w") as file:
    json.dump(right, file)
EOF

cat > check.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { REVISION, Vector3 } from "three";
import { USDLoader } from "three/addons/loaders/USDLoader.js";

const group = new USDLoader().parse(readFileSync("transforms.usda", "utf8"));
group.updateMatrixWorld(true);
const right = JSON.parse(readFileSync("right.json"));
const described = { suffix: "1,2,3", rotate_zyx: "1,2,3", negative: "-1,2,3" };
let changed = false;
for (const name in right) {
  const point = new Vector3(1, 2, 3).applyMatrix4(group.getObjectByName(name).matrixWorld);
  const seen = point.toArray().map((value) => Math.round(value * 1e4) / 1e4 + 0).join();
  console.log(`three r${REVISION}, ${name}: (1, 2, 3) is at ${seen}, right is ${right[name]}`);
  changed ||= seen !== (described[name] ?? right[name].join());
}
if (changed) {
  console.error("the behaviour has changed");
  process.exit(1);
}
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check usd-core==26.11
venv/bin/python write.py
npm install --silent --ignore-scripts --no-audit --no-fund --no-save three@0.187.0
node check.mjs
