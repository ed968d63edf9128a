#!/usr/bin/env bash
# @loaders.gl/core and @loaders.gl/gltf 4.5.4 (npm), Node.js 20.
#
# KHR_texture_transform over texture coordinates that are stored as normalized integers, which glTF 2.0 allows without an
# extension, gives coordinates of the size of the integers. The loader applies the transform itself, to the stored numbers,
# and writes the result as float32, so 65535 with a scale of 0.5 becomes 32767.5 instead of 0.5. The same coordinates as
# float32 are right. gltfpack writes both together: quantized coordinates and a transform that scales them.
# Both files are valid (gltf-validator 2.0.0-dev.3.10: no errors, warnings, infos or hints).
# Expected: the same coordinates from both. Consequence: the texture repeats thousands of times, as noise.
# Seen on 2026-11-30. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { parse } from "@loaders.gl/core";
import { GLTFLoader, postProcessGLTF } from "@loaders.gl/gltf";

const { version } = JSON.parse(readFileSync("node_modules/@loaders.gl/gltf/package.json"));
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";

function triangle(coordinates, description) {
  const positions = new Float32Array([0, 0, 0, 1, 0, 0, 0, 1, 0]);
  const bytes = Buffer.concat([Buffer.from(positions.buffer), Buffer.from(coordinates.buffer)]);
  const baseColorTexture = { index: 0, extensions: { KHR_texture_transform: { scale: [0.5, 0.5] } } };
  return JSON.stringify({
    asset: { version: "2.0" }, scene: 0, scenes: [{ nodes: [0] }], nodes: [{ mesh: 0 }],
    extensionsUsed: ["KHR_texture_transform"],
    meshes: [{ primitives: [{ attributes: { POSITION: 0, TEXCOORD_0: 1 }, material: 0 }] }],
    materials: [{ pbrMetallicRoughness: { baseColorTexture } }],
    textures: [{ source: 0 }],
    images: [{ uri: "data:image/png;base64," + pixel }],
    accessors: [
      { bufferView: 0, componentType: 5126, count: 3, type: "VEC3", min: [0, 0, 0], max: [1, 1, 0] },
      { bufferView: 1, count: 3, type: "VEC2", ...description },
    ],
    bufferViews: [
      { buffer: 0, byteLength: 36, target: 34962 },
      { buffer: 0, byteOffset: 36, byteLength: coordinates.byteLength, target: 34962 },
    ],
    buffers: [{ byteLength: bytes.length, uri: "data:application/octet-stream;base64," + bytes.toString("base64") }],
  });
}

async function transformed(...file) {
  const options = { core: { worker: false }, gltf: { loadImages: false } };
  const gltf = postProcessGLTF(await parse(triangle(...file), GLTFLoader, options));
  const { texCoord } = gltf.materials[0].pbrMetallicRoughness.baseColorTexture;
  const { value, normalized } = gltf.meshes[0].primitives[0].attributes[`TEXCOORD_${texCoord}`];
  return JSON.stringify({ type: value.constructor.name, normalized: normalized ?? false, values: Array.from(value) });
}

const seen = {
  floats: await transformed(new Float32Array([0, 0, 1, 0, 0, 1]), { componentType: 5126 }),
  integers: await transformed(new Uint16Array([0, 0, 65535, 0, 0, 65535]), { componentType: 5123, normalized: true }),
};
console.log("@loaders.gl/gltf", version, seen);
const result = (size) => JSON.stringify({ type: "Float32Array", normalized: false, values: [0, 0, size, 0, 0, size] });
if (seen.floats !== result(0.5) || seen.integers !== result(32767.5)) {
  console.error("the behaviour has changed");
  process.exit(1);
}
EOF

npm install --silent --ignore-scripts --no-audit --no-fund --no-save @loaders.gl/core@4.5.4 @loaders.gl/gltf@4.5.4
node check.mjs
