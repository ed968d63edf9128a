#!/usr/bin/env bash
# OpenImageIO 3.2.2.0 (PyPI). tifffile 2026.3.3 writes the files, pyvips 3.2.0 with libvips 8.18.7 reads them for comparison.
#
# A grey TIFF whose zero is white (PhotometricInterpretation 0) is turned into one whose zero is black if it has 8 bits per
# sample, and is given as it is stored if it has 16: a negative. Both files have the same attributes, and
# "tiff:PhotometricInterpretation" is 0 for both, so a program cannot see which it got, except by the type.
# Expected: the same picture from both, as from libvips: 1.0 where the file has 0.
# Seen on 2026-11-30, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import sys

import numpy as np
import OpenImageIO as oiio
import pyvips
import tifffile

seen = {}
for kind in (np.uint8, np.uint16):
    largest = np.iinfo(kind).max
    path = f"{kind.__name__}.tif"
    tifffile.imwrite(path, np.array([[0, largest // 5, largest]], kind), photometric="miniswhite")
    image = oiio.ImageInput.open(path)
    found = image.read_image(format="float").astype(float).ravel().round(2).tolist()
    attribute = image.spec().get_int_attribute("tiff:PhotometricInterpretation", -1)
    image.close()
    vips = (pyvips.Image.new_from_file(path).numpy().ravel() / largest).round(2).tolist()
    print(f"OpenImageIO {oiio.VERSION_STRING}, {kind.__name__}, attribute {attribute}: {found}, libvips {vips}")
    seen[kind] = found, vips, attribute
white, negative = [1.0, 0.8, 0.0], [0.0, 0.2, 1.0]
if seen != {np.uint8: (white, white, 0), np.uint16: (negative, white, 0)}:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openimageio==3.2.2.0 tifffile==2026.3.3 numpy==2.4.6 \
    pyvips==3.2.0 pyvips-binary==8.18.7
venv/bin/python check.py
