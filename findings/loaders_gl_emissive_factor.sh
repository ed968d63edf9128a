#!/usr/bin/env bash
# @loaders.gl/core and @loaders.gl/gltf 4.5.4 (npm), Node.js 20.
#
# A material with an emissiveTexture and without an emissiveFactor does not shine, since glTF 2.0 gives the factor the default
# [0, 0, 0], and texture and factor are multiplied. postProcessGLTF sets the factor to [1, 1, 1] there, so the material
# shines with the full texture. Without the texture the factor is right, and a factor in the file is kept.
# Expected: [0, 0, 0], the schema's default and three.js' value.
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
const emissiveTexture = { index: 0 };
const file = JSON.stringify({
  asset: { version: "2.0" },
  materials: [{ name: "plain" }, { emissiveTexture }, { emissiveTexture, emissiveFactor: [0, 0, 0] }],
  textures: [{ source: 0 }],
  images: [{ uri: "data:image/png;base64," + pixel }],
});
const gltf = postProcessGLTF(await parse(file, GLTFLoader, { core: { worker: false }, gltf: { loadImages: false } }));
const [neither, texture, both] = gltf.materials.map((material) => material.emissiveFactor.join(" "));
console.log("@loaders.gl/gltf", version, { neither, texture, both });
if (neither !== "0 0 0" || texture !== "1 1 1" || both !== "0 0 0") {
  console.error("the behaviour has changed");
  process.exit(1);
}
EOF

npm install --silent --ignore-scripts --no-audit --no-fund --no-save @loaders.gl/core@4.5.4 @loaders.gl/gltf@4.5.4
node check.mjs
