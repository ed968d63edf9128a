"""Reconstruct the face in a public-domain photo, NASA's portrait of Eileen Collins, which scikit-image contains.

Usage: python examples/00_demo.py [FOLDER [OPTIONS OF MIEN RECONSTRUCT]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
from PIL import Image

from mien.cli import main

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
out.mkdir(parents=True, exist_ok=True)
photo = out / "astronaut.png"
Image.fromarray(skimage.data.astronaut()).save(photo)

main(["reconstruct", str(photo), "--out", str(out), *sys.argv[2:]])
