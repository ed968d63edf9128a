#!/usr/bin/env bash
# meshoptimizer 0.2.30a0 (PyPI), the Python wrapper of the C++ library.
#
# An array of triangles with the shape (n, 3) is misread without an error:
#   - optimize_vertex_cache counts its rows as indices, so it moves a third of the triangles and leaves the rest
#     of the destination as it was; so do the other functions with the default index_count.
#   - encode_index_buffer and simplify, with the right index_count, read the memory in its order and ignore the strides. A
#     column-major array (faces.T of a (3, n) array) or a slice of columns (faces[:, 1:] of rows that begin with a 3,
#     VTK's and PLY's layout) of the type uint32 becomes other triangles. Other types are right, as they are converted first.
# encode_vertex_buffer is right with any layout. The README's triangles are flat lists, but nothing refuses others.
# Expected: the triangles of the array, or a ValueError.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import importlib.metadata
import sys

import meshoptimizer
import numpy as np

SIDE = 10
corner = (np.arange(SIDE - 1)[:, None] * SIDE + np.arange(SIDE - 1)).ravel()
faces = np.concatenate([corner[:, None] + (0, 1, SIDE), corner[:, None] + (1, SIDE + 1, SIDE)]).astype(np.uint32)
rows = np.column_stack([np.full(len(faces), 3, np.uint32), faces])


def as_set(triangles):
    """Triangles that may begin at any corner and come in any order."""
    return {tuple(np.roll(triangle, -triangle.argmin()).tolist()) for triangle in triangles.reshape(-1, 3)}


def encoded(triangles):
    data = meshoptimizer.encode_index_buffer(triangles, faces.size, SIDE**2)
    return meshoptimizer.decode_index_buffer(faces.size, 4, data)


seen = {}
for name, triangles in {
    "flat": faces.ravel(), "row-major": faces, "column-major": np.asfortranarray(faces), "columns 1 to 3": rows[:, 1:],
    "columns 1 to 3, int64": rows.astype(np.int64)[:, 1:],
}.items():
    kept = len(as_set(faces) & as_set(encoded(triangles)))
    moved = np.zeros(faces.size, np.uint32)
    meshoptimizer.optimize_vertex_cache(moved, triangles)
    seen[name] = kept == len(faces), np.count_nonzero(moved.reshape(-1, 3).any(1))
    print(f"meshoptimizer {importlib.metadata.version('meshoptimizer')}, {name}: {kept} of {len(faces)} triangles after "
          f"encoding, {seen[name][1]} after optimize_vertex_cache")
third = len(faces) // 3
right = {name for name, (kept, _) in seen.items() if kept}
counts = {name: count for name, (_, count) in seen.items()}
if right != {"flat", "row-major", "columns 1 to 3, int64"} or counts.pop("flat") != len(faces):
    sys.exit("the behaviour has changed")
if max(counts.values()) > third + 1:
    sys.exit("the behaviour has changed: optimize_vertex_cache takes whole arrays")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check meshoptimizer==0.2.30a0 numpy==2.4.6
venv/bin/python check.py
