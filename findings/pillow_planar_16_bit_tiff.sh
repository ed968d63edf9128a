#!/usr/bin/env bash
# pillow 13.0.0 (PyPI). tifffile 2026.3.3 writes the files and reads them back for comparison.
#
# A TIFF with 16 bits per sample, RGB, a plane per channel (PlanarConfiguration 2) and no compression is read byte by byte,
# without an error: each byte of a 16-bit sample becomes a pixel. A row of the photo fills two rows of the picture, so its lower
# half is lost, and every second column has low bytes, which look like noise. The same file with Deflate compression is right.
# Expected: the high byte of each sample, which Pillow gives for the compressed file.
# Seen on 2026-11-29, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

high = np.arange(1, 25, dtype=np.uint16).reshape(3, 2, 4)  # channel, row, column
photo = high * 256 + 100


def read(order, compression):
    tifffile.imwrite(
        "photo.tif", photo, byteorder=order, compression=compression, photometric="rgb", planarconfig="separate"
    )
    assert np.array_equal(tifffile.imread("photo.tif"), photo)
    with Image.open("photo.tif") as image:
        return np.moveaxis(np.asarray(image), -1, 0)


changed = False
for order in "<>":
    bytes_of_first_row = photo.astype(f"{order}u2").view(np.uint8)[:, 0].reshape(3, 2, 4)
    for compression, expected in (("deflate", high), (None, bytes_of_first_row)):
        seen = read(order, compression)
        name = {">": "big", "<": "little"}[order] + "-endian, " + (compression or "not compressed")
        print(f"pillow {PIL.__version__}, {name}: red {high[0].tolist()} is read as {seen[0].tolist()}")
        changed |= not np.array_equal(seen, expected)
if changed:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
venv/bin/python check.py
