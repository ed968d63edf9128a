#!/usr/bin/env bash
# three 0.187.0 (npm), Node.js 20.
#
# The animated morph weights of a glTF node whose mesh has several primitives also play in its child nodes, in place of their own.
# GLTFLoader makes such a node a Group, and binds the track to all children of the group that have morph targets: the primitives, and
# the child nodes. Here the weight of a node with two primitives rises from 0 to 1; its child node has a mesh of its own, weight 0.25
# and no channel, but ends at 1. With one primitive, the child keeps 0.25. glTF animates the one node that a channel targets.
# Expected at the end: 1 and 0.25 for both. Consequence: eyeballs that are children of a head play the head's weights.
# Seen on 2026-11-30. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.mjs <<'EOF'
import { AnimationMixer } from "three";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";

const values = new Float32Array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1]);
const bytes = Buffer.from(values.buffer);
const view = (byteOffset, byteLength) => ({ buffer: 0, byteOffset, byteLength });
const floats = (bufferView, count, type, limits = {}) => ({ bufferView, componentType: 5126, count, type, ...limits });
const primitive = { attributes: { POSITION: 0 }, targets: [{ POSITION: 1 }] };

const document = (primitives) => JSON.stringify({
  asset: { version: "2.0" }, scene: 0, scenes: [{ nodes: [0] }],
  nodes: [{ name: "head", mesh: 0, children: [1] }, { name: "eye", mesh: 1 }],
  meshes: [
    { weights: [0], primitives: Array(primitives).fill(primitive) }, { weights: [0.25], primitives: [primitive] },
  ],
  animations: [{
    channels: [{ sampler: 0, target: { node: 0, path: "weights" } }],
    samplers: [{ input: 2, interpolation: "LINEAR", output: 3 }],
  }],
  accessors: [
    floats(0, 3, "VEC3", { min: [0, 0, 0], max: [1, 1, 0] }), floats(1, 3, "VEC3", { min: [0, 0, 1], max: [0, 0, 1] }),
    floats(2, 2, "SCALAR", { min: [0], max: [1] }), floats(3, 2, "SCALAR"),
  ],
  bufferViews: [view(0, 36), view(36, 36), view(72, 8), view(80, 8)],
  buffers: [{ byteLength: bytes.length, uri: "data:application/octet-stream;base64," + bytes.toString("base64") }],
});

async function weightsAtTheEnd(primitives) {
  const { scene, animations } = await new GLTFLoader().parseAsync(document(primitives), "");
  const mixer = new AnimationMixer(scene);
  const action = mixer.clipAction(animations[0]).setLoop(2200, 1); // once
  action.clampWhenFinished = true;
  action.play();
  mixer.setTime(1);
  const found = {};
  scene.traverse((object) => (found[object.name] = object.morphTargetInfluences?.[0] ?? found[object.name]));
  return found.eye;
}

globalThis.self = globalThis;
globalThis.ProgressEvent ??= class { constructor(type, options) { Object.assign(this, { type }, options); } };
const [one, two] = [await weightsAtTheEnd(1), await weightsAtTheEnd(2)];
console.log(`weight of the child node at the end: ${one} below one primitive, ${two} below two`);
process.exit(one === 0.25 && two === 1 ? 0 : 1);
EOF

npm init --yes > /dev/null
npm install --silent --no-audit --no-fund --ignore-scripts three@0.187.0
node check.mjs
