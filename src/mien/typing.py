"""Array types with shapes, in jaxtyping's notation.

Dimension names in all annotations of the package:

    B   images, or faces, of a batch        V   vertices of a mesh
    T   triangles of a mesh                 L   landmarks
    H W rows and columns of an image        C   colour or attribute channels
    I   identity coefficients               E   expression coefficients
    A   albedo coefficients                 P   points

The tests check these annotations at run time (beartype); users pay nothing for them.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int, Shaped, UInt8, UInt16
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Shaped", "Tensor", "UInt8", "UInt16"]
