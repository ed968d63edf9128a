"""A differentiable soft rasterizer for triangle meshes, usable without the rest of the package.

`rasterize` draws softly and differentiably, `rasterize_hard` finds the nearest triangle under each pixel centre.
See docs/rasterizer.md.
"""

from mien.rasterizer.interpolation import interpolate as interpolate
from mien.rasterizer.interpolation import texture as texture
from mien.rasterizer.rasterization import rasterize as rasterize
from mien.rasterizer.rasterization import rasterize_hard as rasterize_hard
from mien.rasterizer.reference import Fragments as Fragments
from mien.rasterizer.reference import RasterOutput as RasterOutput
from mien.rasterizer.settings import RasterSettings as RasterSettings
