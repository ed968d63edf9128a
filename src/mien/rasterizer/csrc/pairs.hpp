// One triangle and one block of pixels: distances to edges, barycentrics, depth, coverage, by the formulas of
// reference.py.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

// PyTorch3D's definition runs through the kernels for any number of channels; the fast ones have only that of SoftRas.
template <int Channels>
MIEN_INLINE bool is_linear(const Frame& frame) {
    return Channels ? false : frame.linear_depth;
}

struct Lattice {
    Floats x, y;  // centres of a block's pixels relative to the block's first corner
};

MIEN_INLINE Lattice lattice() {
    Lattice at;
    for (int lane = 0; lane < kLanes; ++lane) {
        at.x[lane] = (float)(lane % kBlockColumns) + 0.5f;
        at.y[lane] = (float)(lane / kBlockColumns) + 0.5f;
    }
    return at;
}

struct Edges {
    Floats distance[3];   // to the line of the edge, positive inside
    Floats along[3];      // position along the edge, from the origin
    Floats overshoot[3];  // distance of `along` beyond the ends of the edge; 0 between them
    Floats distance_sq[3];
    Mask inside;
};

// Distances to the lines only, which decide between inside and outside.
template <typename Number>
MIEN_INLINE void measure_lines(const Shape<Number>& t, Floats x, Floats y, Edges& e) {
    for (int k = 0; k < 3; ++k) e.distance[k] = x * t.normal_x[k] + (y * t.normal_y[k] + t.distance_at_origin[k]);
    e.inside = at_most(Floats{}, minimum(e.distance[0], minimum(e.distance[1], e.distance[2])));
}

template <typename Number>
MIEN_INLINE void measure(const Shape<Number>& t, Floats x, Floats y, Edges& e) {
    measure_lines(t, x, y, e);
    const Floats along_x = x * t.winding, along_y = y * t.winding;
    for (int k = 0; k < 3; ++k) {
        e.along[k] = along_x * t.normal_y[k] - along_y * t.normal_x[k];
        e.overshoot[k] = e.along[k] - clamp(e.along[k], splat(t.start_along[k]), splat(t.end_along[k]));
        e.distance_sq[k] = e.distance[k] * e.distance[k] + e.overshoot[k] * e.overshoot[k];
    }
}

MIEN_INLINE Floats nearest_distance_sq(const Edges& e) {
    return minimum(e.distance_sq[0], minimum(e.distance_sq[1], e.distance_sq[2]));
}

struct Surface {
    Floats raw[3];      // barycentrics, unclamped
    Floats clamped[3];  // ... clamped and divided by their sum
    Floats scale;       // ... by multiplying with this
    Floats share[2];    // their terms of corners 0 and 1 in ...
    Floats depth_term;  // ... 1 / z, or z if linear_depth
    Floats z;
    Mask in_range;
};

template <typename Number>
MIEN_INLINE void interpolate(const Frame& frame, bool linear, const Shape<Number>& t, const Edges& e, Surface& s) {
    s.raw[0] = e.distance[1] * t.inverse_height[0];
    s.raw[1] = e.distance[2] * t.inverse_height[1];
    s.raw[2] = 1.0f - s.raw[0] - s.raw[1];  // so that at least one is >= 1/3, even in very thin triangles
    for (int k = 0; k < 3; ++k) s.clamped[k] = linear ? maximum(s.raw[k], Floats{}) : clamp(s.raw[k], Floats{}, splat(1.0f));
    s.scale = reciprocal(s.clamped[0] + s.clamped[1] + s.clamped[2]);
    for (int k = 0; k < 3; ++k) s.clamped[k] *= s.scale;
    s.share[0] = s.clamped[0] * t.depth_term[0];
    s.share[1] = s.clamped[1] * t.depth_term[1];
    s.depth_term = s.share[0] + s.share[1] + s.clamped[2] * t.depth_term[2];
    s.z = linear ? s.depth_term : reciprocal(s.depth_term);
    s.in_range = at_most(s.z, splat((float)frame.far_depth));  // no corner is nearer than near
}

// Zeta at the pixel without its whole number, zeta_whole.
template <typename Number>
MIEN_INLINE Floats zeta_rest(bool linear, const Shape<Number>& t, const Surface& s) {
    const Floats slope = s.clamped[0] * t.zeta_slope[0] + s.clamped[1] * t.zeta_slope[1];
    return (linear ? slope : s.z * slope) + t.zeta_rest;
}

struct Coverage {
    Floats covered;      // D
    Floats uncovered;    // 1 - D, without loss of digits where D is near 1
};

MIEN_INLINE Coverage coverage(Mask inside, Floats distance_sq, float inverse_sigma) {
    const Floats odds_against = exponential(minimum(select(inside, -distance_sq, distance_sq) * inverse_sigma, splat(87.0f)));
    Coverage c;
    c.covered = reciprocal(1.0f + odds_against);
    c.uncovered = odds_against * c.covered;
    return c;
}

}  // namespace
}  // namespace MIEN_ISA
}  // namespace mien
