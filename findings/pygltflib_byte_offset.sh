#!/usr/bin/env bash
# pygltflib 1.16.5 (PyPI).
#
# Loading a valid glTF file and saving it, without a change, makes it invalid: each accessor that has no bufferView gets
# "byteOffset": 0. The schema of glTF 2.0 allows byteOffset only beside bufferView. An accessor without one is common: it
# is the short form of sparse data over zeros, here a morph target. gltf-validator 2.0.0-dev.3.10 has no message for the
# first file, and the error UNSATISFIED_DEPENDENCY at /accessors/1/byteOffset for the second.
# Expected: byteOffset stays away where the file had no bufferView.
# Seen on 2026-11-29, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import base64
import importlib.metadata
import json
import struct
import sys

from pygltflib import GLTF2

PARTS = [
    struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0),  # positions of a triangle
    struct.pack("<Hxx", 1),  # the target moves vertex 1 ...
    struct.pack("<3f", 0, 0, 1),  # ... by one along z
]
data = b"".join(PARTS)
floats = {"componentType": 5126, "count": 3, "type": "VEC3"}
document = {
    "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "targets": [{"POSITION": 1}]}]}],
    "accessors": [
        {**floats, "bufferView": 0, "min": [0, 0, 0], "max": [1, 1, 0]},
        {**floats, "min": [0, 0, 0], "max": [0, 0, 1], "sparse": {
            "count": 1,
            "indices": {"bufferView": 1, "componentType": 5123},
            "values": {"bufferView": 2},
        }},
    ],
    "bufferViews": [
        {"buffer": 0, "byteOffset": 0, "byteLength": 36, "target": 34962},
        {"buffer": 0, "byteOffset": 36, "byteLength": 2},
        {"buffer": 0, "byteOffset": 40, "byteLength": 12},
    ],
    "buffers": [{
        "byteLength": len(data),
        "uri": "data:application/octet-stream;base64," + base64.b64encode(data).decode(),
    }],
}
with open("valid.gltf", "w") as file:
    json.dump(document, file)
GLTF2().load("valid.gltf").save("saved.gltf")
with open("saved.gltf") as file:
    saved = json.load(file)["accessors"][1]
print("pygltflib", importlib.metadata.version("pygltflib"), saved)
if "bufferView" in saved or saved.get("byteOffset") != 0:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pygltflib==1.16.5
venv/bin/python check.py
