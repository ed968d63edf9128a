#!/usr/bin/env bash
# vtk 9.7.2 (PyPI), vtkGLTFReader.
#
# A morph target whose accessor is sparse and has no bufferView, which in glTF 2.0 means sparse over zeros,
# is lost: the reader opens the file and reports no error, but the
# array "target0_position" of its output is empty. The same target over a bufferView of zeros has the right offsets.
# Both files are valid (gltf-validator 2.0.0-dev.3.10: no errors, warnings, infos or hints).
# Expected: the same array from both. Consequence: blendshapes that exporters write this way, to save space, are lost silently.
# Seen on 2026-11-29, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import json
import struct
import sys

from vtkmodules.vtkCommonCore import vtkVersion
from vtkmodules.vtkIOGeometry import vtkGLTFReader

PARTS = [
    struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0),  # positions of a triangle
    struct.pack("<Hxx", 1),  # the target moves vertex 1 ...
    struct.pack("<3f", 0, 0, 1),  # ... by one along z
    struct.pack("<9f", *[0] * 9),  # zeros
]


def write(path, zeros_in_view):
    views, start = [], 0
    for part, length in zip(PARTS, (36, 2, 12, 36)):
        views.append({"buffer": 0, "byteOffset": start, "byteLength": length})
        start += len(part)
    views[0]["target"] = views[3]["target"] = 34962
    floats = {"componentType": 5126, "count": 3, "type": "VEC3"}
    target = {**floats, "min": [0, 0, 0], "max": [0, 0, 1], "sparse": {
        "count": 1,
        "indices": {"bufferView": 1, "byteOffset": 0, "componentType": 5123},
        "values": {"bufferView": 2, "byteOffset": 0},
    }}
    if zeros_in_view:
        target["bufferView"] = 3
    parts = PARTS if zeros_in_view else PARTS[:3]
    data = b"".join(parts)
    document = json.dumps({
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "targets": [{"POSITION": 1}]}], "weights": [0]}],
        "accessors": [{**floats, "bufferView": 0, "min": [0, 0, 0], "max": [1, 1, 0]}, target],
        "bufferViews": views[: len(parts)], "buffers": [{"byteLength": len(data)}],
    }).encode()
    document += b" " * (-len(document) % 4)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(document) + len(data)))
        file.write(struct.pack("<I4s", len(document), b"JSON") + document)
        file.write(struct.pack("<I4s", len(data), b"BIN\0") + data)


def offsets(path):
    reader = vtkGLTFReader()
    reader.SetFileName(path)
    reader.SetApplyDeformationsToGeometry(False)
    reader.Update()
    blocks = reader.GetOutput().NewIterator()
    blocks.InitTraversal()
    points = blocks.GetCurrentDataObject().GetPointData()
    array = points.GetArray("target0_position")
    return [array.GetTuple(k) for k in range(array.GetNumberOfTuples())]


write("without_view.glb", zeros_in_view=False)
write("with_view.glb", zeros_in_view=True)
found = {name: offsets(f"{name}.glb") for name in ("without_view", "with_view")}
print("vtk", vtkVersion.GetVTKVersion(), found)
expected = [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
if found != {"without_view": [], "with_view": expected}:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check vtk==9.7.2
venv/bin/python check.py
