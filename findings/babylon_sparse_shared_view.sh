#!/usr/bin/env bash
# babylonjs 9.28.0 and babylonjs-loaders 9.28.0 (npm), Node.js 20. No browser: Babylon's NullEngine.
#
# Sparse accessors of a glTF file over one shared bufferView overwrite each other: the loader writes the sparse values into
# the data of the view, from which the next accessor starts. Here two morph targets share a view of zeros. The first moves
# vertex 0, the second moves vertex 1, but both come out with both movements, without an error or a warning. With a view
# of zeros per target, each is right.
# Both files are valid (gltf-validator 2.0.0-dev.3.10: no errors, warnings, infos or hints).
# Expected: the same positions from both. Consequence: one blendshape of such a face makes all expressions at once.
# Seen on 2026-11-29. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.js <<'EOF'
const BABYLON = require("babylonjs");
require("babylonjs-loaders");

function triangleWithTwoTargets(viewPerTarget) {
  const parts = [];
  const bufferViews = [];
  let length = 0;
  function view(array, properties) {
    const bytes = Buffer.alloc(Math.ceil(array.byteLength / 4) * 4);
    Buffer.from(array.buffer).copy(bytes);
    bufferViews.push({ buffer: 0, byteOffset: length, byteLength: array.byteLength, ...properties });
    parts.push(bytes);
    length += bytes.length;
    return bufferViews.length - 1;
  }
  const vertices = { target: 34962, byteStride: 12 };
  const floats = { componentType: 5126, count: 3, type: "VEC3" };
  const base = view(new Float32Array([0, 0, 0, 1, 0, 0, 0, 1, 0]), { target: 34962 });
  const shared = view(new Float32Array(9), vertices);
  const accessors = [{ ...floats, bufferView: base, min: [0, 0, 0], max: [1, 1, 0] }];
  for (const [vertex, z] of [[0, 1], [1, 2]]) {
    accessors.push({
      ...floats, min: [0, 0, 0], max: [0, 0, z],
      bufferView: viewPerTarget && vertex === 1 ? view(new Float32Array(9), vertices) : shared,
      sparse: {
        count: 1,
        indices: { bufferView: view(new Uint16Array([vertex])), componentType: 5123 },
        values: { bufferView: view(new Float32Array([0, 0, z])) },
      },
    });
  }
  const uri = "data:application/octet-stream;base64," + Buffer.concat(parts).toString("base64");
  return JSON.stringify({
    asset: { version: "2.0" }, scene: 0, scenes: [{ nodes: [0] }], nodes: [{ mesh: 0 }],
    meshes: [{ primitives: [{ attributes: { POSITION: 0 }, targets: [{ POSITION: 1 }, { POSITION: 2 }] }] }],
    accessors, bufferViews, buffers: [{ byteLength: length, uri }],
  });
}

async function positions(viewPerTarget) {
  const scene = new BABYLON.Scene(new BABYLON.NullEngine());
  const file = "data:" + triangleWithTwoTargets(viewPerTarget);
  const container = await BABYLON.SceneLoader.LoadAssetContainerAsync("", file, scene, undefined, ".gltf");
  const manager = container.morphTargetManagers[0];
  return JSON.stringify([0, 1].map((target) => Array.from(manager.getTarget(target).getPositions())));
}

async function main() {
  const seen = { shared: await positions(false), perTarget: await positions(true) };
  console.log("babylonjs", BABYLON.Engine.Version, seen);
  const both = [0, 0, 1, 1, 0, 2, 0, 1, 0];
  const expected = {
    shared: JSON.stringify([both, both]),
    perTarget: JSON.stringify([[0, 0, 1, 1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 2, 0, 1, 0]]),
  };
  if (seen.shared !== expected.shared || seen.perTarget !== expected.perTarget) {
    throw new Error("the behaviour has changed");
  }
}

main().then(() => process.exit(0), (error) => { console.error(error.message); process.exit(1); });
EOF

npm install --silent --ignore-scripts --no-audit --no-fund --no-save babylonjs@9.28.0 babylonjs-loaders@9.28.0
node check.js
