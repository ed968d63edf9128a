"""One triangle and one pixel: distances to edges, barycentrics, depth, coverage; as in csrc/pairs.hpp.

Numbers of the shape and of the pixel may each be scalars or tensors, so these serve one triangle against many pixels
as well as many triangles, each against a pixel of its own.
"""
# Numbered names stand for the arrays of the C++ code: Triton has only tensors with powers of two, and tuples.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def edge_distance(shape, k: tl.constexpr, x, y):
    """Distance to the line of edge k, position along it, overshoot beyond its ends, squared distance to the edge."""
    distance = x * shape[k] + (y * shape[3 + k] + shape[6 + k])
    along = shape[17] * (x * shape[3 + k] - y * shape[k])
    overshoot = along - tl.minimum(tl.maximum(along, shape[9 + k]), shape[12 + k])
    return distance, along, overshoot, distance * distance + overshoot * overshoot


@triton.jit
def interpolate(shape, distance1, distance2, LINEAR: tl.constexpr):
    """Raw barycentrics; clamped ones, divided by their sum; 1 / that sum; the depth."""
    raw0 = distance1 * shape[15]
    raw1 = distance2 * shape[16]
    raw2 = 1.0 - raw0 - raw1
    b0 = tl.maximum(raw0, 0.0)
    b1 = tl.maximum(raw1, 0.0)
    b2 = tl.maximum(raw2, 0.0)
    if not LINEAR:
        b0 = tl.minimum(b0, 1.0)
        b1 = tl.minimum(b1, 1.0)
        b2 = tl.minimum(b2, 1.0)
    scale = 1.0 / (b0 + b1 + b2)
    b0 *= scale
    b1 *= scale
    b2 *= scale
    z = b0 * shape[18] + b1 * shape[19] + b2 * shape[20]
    if not LINEAR:
        z = 1.0 / z
    return raw0, raw1, raw2, b0, b1, b2, scale, z


@triton.jit
def zeta_rest(shape, b0, b1, z, LINEAR: tl.constexpr):
    """Zeta at the pixel without its whole number; see Shape in csrc/kernels.hpp."""
    slope = b0 * shape[21] + b1 * shape[22]
    if not LINEAR:
        slope *= z
    return slope + shape[24]


@triton.jit
def coverage(inside, distance_sq, inverse_sigma):
    """D, and 1 - D without loss of digits."""
    odds_against = tl.exp(tl.minimum(tl.where(inside, -distance_sq, distance_sq) * inverse_sigma, 87.0))
    covered = 1.0 / (1.0 + odds_against)
    return covered, odds_against * covered
