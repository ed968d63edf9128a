#!/usr/bin/env bash
# three 0.187.0 (npm), USDLoader, Node.js 20. usd-core 26.11 (PyPI) writes the files.
#
# A scale with half precision, which USD's XformOp allows beside float and double, is read wrongly from a binary file (.usdc):
# (2, 2, 2) becomes 131586 in all three axes, since whole numbers lie as three bytes in the value's own place, and the
# loader takes these bytes as one number: 0x020202. (1.5, 2, 3), which lies elsewhere in the file, is left out with a
# warning. From a text file (.usda) with the same content both are right, and so is float precision from both.
# Expected: the same scale from both files.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > write.py <<'EOF'
from pxr import Gf, Usd, UsdGeom

for ending in ("usda", "usdc"):
    stage = Usd.Stage.CreateNew(f"scales.{ending}")
    UsdGeom.SetStageMetersPerUnit(stage, 1)
    for name, kind, scale in (
        ("whole_float", "Float", Gf.Vec3f(2)), ("whole_half", "Half", Gf.Vec3h(2)), ("half", "Half", Gf.Vec3h(1.5, 2, 3))
    ):
        xform = UsdGeom.Xform.Define(stage, f"/{name}")
        xform.AddScaleOp(getattr(UsdGeom.XformOp, f"Precision{kind}")).Set(scale)
    stage.GetRootLayer().Save()
EOF

cat > check.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { REVISION } from "three";
import { USDLoader } from "three/addons/loaders/USDLoader.js";

function scales(path) {
  const { buffer, byteOffset, length } = readFileSync(path);
  const group = new USDLoader().parse(buffer.slice(byteOffset, byteOffset + length));
  const found = ["whole_float", "whole_half", "half"].map((name) => group.getObjectByName(name).scale.toArray());
  console.log(`three r${REVISION}, ${path}:`, ...found);
  return JSON.stringify(found);
}

const seen = { usda: scales("scales.usda"), usdc: scales("scales.usdc") };
if (
  seen.usda !== "[[2,2,2],[2,2,2],[1.5,2,3]]" || seen.usdc !== "[[2,2,2],[131586,131586,131586],[1,1,1]]"
) {
  console.error("the behaviour has changed");
  process.exit(1);
}
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check usd-core==26.11
venv/bin/python write.py
npm install --silent --ignore-scripts --no-audit --no-fund --no-save three@0.187.0
node check.mjs
