#!/usr/bin/env bash
# pillow 13.0.0 (PyPI), on a little-endian machine. tifffile 2026.3.3 writes the files and reads them back for comparison.
#
# The samples of a grey TIFF that is big-endian and compressed come out with their bytes reversed, without an error, if they
# are float32, int32 or int16: 1.0 becomes 4.6e-41. The same samples are right if the file is not compressed, or
# little-endian, or if they are uint16. For compressed files Pillow calls libtiff, which gives samples in the byte order of
# the machine; TiffImagePlugin.py takes that into account for unsigned 16-bit samples only and reverses the others again.
# Expected: the samples that were written, in all cases.
# Seen on 2026-11-29, Python 3.11. Exit status: 0 while the behaviour is as described, 1 when it changes, 77 on a
# big-endian machine.
set -euo pipefail
[ "$(python3 -c 'import sys; print(sys.byteorder)')" = little ] || { echo "needs a little-endian machine"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'EOF'
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

changed = False
for kind in ("float32", "int32", "int16", "uint16"):
    samples = np.array([[1, 2, 3]], kind)
    for order, compression in ((">", "deflate"), (">", None), ("<", "deflate")):
        tifffile.imwrite("grey.tif", samples, byteorder=order, compression=compression, photometric="minisblack")
        assert np.array_equal(tifffile.imread("grey.tif"), samples)
        with Image.open("grey.tif") as image:
            seen = np.asarray(image)
        name = {">": "big", "<": "little"}[order] + "-endian, " + (compression or "not compressed")
        print(f"pillow {PIL.__version__}, {kind}, {name}: {samples[0].tolist()} is read as {seen[0].tolist()}")
        reversed_twice = kind != "uint16" and (order, compression) == (">", "deflate")
        expected = samples.byteswap() if reversed_twice else samples
        changed |= not np.array_equal(seen, expected)
if changed:
    sys.exit("the behaviour has changed")
EOF

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
venv/bin/python check.py
