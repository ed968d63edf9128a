"""Reconstruct the face in astronaut.png: NASA's portrait of Eileen Collins, public domain, as scikit-image packs it.

Usage: python examples/00_demo.py [FOLDER [OPTIONS OF MIEN RECONSTRUCT]]
"""

from __future__ import annotations

import sys
from pathlib import Path

from mien.cli import main

photo = Path(__file__).with_name("astronaut.png")
out = sys.argv[1] if len(sys.argv) > 1 else "out"
main(["reconstruct", str(photo), "--out", out, *sys.argv[2:]])
