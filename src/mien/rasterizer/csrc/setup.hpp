// Prepares triangles: edges, depths, boxes and visibility.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

constexpr double kMinimumArea = 1e-12;  // twice the area, NDC²; as in reference.py

template <typename Number>
MIEN_INLINE Number lesser(Number a, Number b) { return a < b ? a : b; }
template <typename Number>
MIEN_INLINE Number greater(Number a, Number b) { return a > b ? a : b; }

// Setup goes through the triangles in groups, with one array per quantity: loops over these become vector code.
constexpr int kGroup = 64;

// Positions are doubles, because the differences of nearby positions lose digits here.
struct Group {
    double x[3][kGroup], y[3][kGroup], z[3][kGroup];  // NDC and depth; then pixels relative to the origin
    double area[kGroup];                              // twice the signed area, NDC²
    double left[kGroup], right[kGroup], top[kGroup], bottom[kGroup];  // first and last pixel
    double origin_x[kGroup], origin_y[kGroup];
    int32_t visible[kGroup];
    float normal_x[3][kGroup], normal_y[3][kGroup], distance_at_origin[3][kGroup];
    float start_along[3][kGroup], end_along[3][kGroup], inverse_height[3][kGroup];
    float depth_term[3][kGroup], zeta_slope[2][kGroup];
    float zeta_whole[kGroup], zeta_rest[kGroup], winding[kGroup];
};

MIEN_INLINE void load_group(const Frame& frame, int first, int count, Group& g) {
    for (int i = 0; i < count; ++i) {
        for (int k = 0; k < 3; ++k) {
            const float* position = frame.positions + int64_t(3) * frame.corners[int64_t(3) * (first + i) + k];
            g.x[k][i] = position[0];
            g.y[k][i] = position[1];
            g.z[k][i] = position[2];
        }
    }
    // The unused rest of a group must be finite.
    for (int i = count; i < kGroup; ++i)
        for (int k = 0; k < 3; ++k) g.x[k][i] = g.y[k][i] = g.z[k][i] = 0.0;
}

// The pixels whose centres lie between the lowest and the highest position, and the pixel that becomes the origin: the
// middle of the triangle, or the nearest pixel of the image if the middle is outside. Positions may be any finite number, so
// that everything is bounded before it becomes an integer.
MIEN_INLINE void find_span(const Frame& frame, int size, double (&position)[3][kGroup], double (&first)[kGroup],
                           double (&last)[kGroup], double (&origin)[kGroup]) {
    for (int i = 0; i < kGroup; ++i) {
        const double a = position[0][i] * frame.pixels_per_ndc + 0.5 * size;
        const double b = position[1][i] * frame.pixels_per_ndc + 0.5 * size;
        const double c = position[2][i] * frame.pixels_per_ndc + 0.5 * size;
        const double low = lesser(a, lesser(b, c)), high = greater(a, greater(b, c));
        first[i] = greater(__builtin_ceil(low - frame.reach - 0.5), 0.0);
        last[i] = lesser(__builtin_floor(high + frame.reach - 0.5), size - 1.0);
        origin[i] = __builtin_floor(lesser(greater(0.5 * (low + high), 0.0), (double)size));
        position[0][i] = a - origin[i];
        position[1][i] = b - origin[i];
        position[2][i] = c - origin[i];
    }
}

MIEN_INLINE void find_visible(const Frame& frame, int count, Group& g) {
    const double facing = frame.cull_backfaces ? -1.0 : 0.0;
    for (int i = 0; i < kGroup; ++i) {
        g.area[i] = (g.x[1][i] - g.x[0][i]) * (g.y[2][i] - g.y[0][i]) - (g.x[2][i] - g.x[0][i]) * (g.y[1][i] - g.y[0][i]);
        g.winding[i] = g.area[i] > 0 ? 1.0f : -1.0f;
    }
    find_span(frame, frame.width, g.x, g.left, g.right, g.origin_x);
    find_span(frame, frame.height, g.y, g.top, g.bottom, g.origin_y);
    for (int i = 0; i < kGroup; ++i) {
        const double seen = facing < 0 ? -g.area[i] : __builtin_fabs(g.area[i]);
        const double nearest = lesser(g.z[0][i], lesser(g.z[1][i], g.z[2][i]));
        g.visible[i] = (seen > kMinimumArea) & (nearest >= frame.near_depth) & (nearest <= frame.far_depth) &
                       (g.left[i] <= g.right[i]) & (g.top[i] <= g.bottom[i]);
    }
    for (int i = count; i < kGroup; ++i) g.visible[i] = 0;
}

template <typename Real>
MIEN_INLINE void find_edges_in(const Frame& frame, Group& g) {
    const Real per_area = (Real)(1.0 / (frame.pixels_per_ndc * frame.pixels_per_ndc));
    for (int k = 0; k < 3; ++k) {
        const int next = (k + 1) % 3;
        for (int i = 0; i < kGroup; ++i) {
            const Real edge_x = (Real)(g.x[next][i] - g.x[k][i]), edge_y = (Real)(g.y[next][i] - g.y[k][i]);
            const Real square = edge_x * edge_x + edge_y * edge_y;
            const Real length = sizeof(Real) == 4 ? (Real)__builtin_sqrtf((float)square) : (Real)__builtin_sqrt(square);
            const Real along_x = edge_x / length, along_y = edge_y / length, winding = g.winding[i];
            const Real start_x = (Real)g.x[k][i], start_y = (Real)g.y[k][i];
            const Real end_x = (Real)g.x[next][i], end_y = (Real)g.y[next][i];
            g.normal_x[k][i] = (float)(-winding * along_y);
            g.normal_y[k][i] = (float)(winding * along_x);
            g.distance_at_origin[k][i] = (float)(winding * (along_y * start_x - along_x * start_y));
            g.start_along[k][i] = (float)(along_x * start_x + along_y * start_y);
            g.end_along[k][i] = (float)(along_x * end_x + along_y * end_y);
            g.inverse_height[k][i] = (float)(length * per_area / (Real)__builtin_fabs(g.area[i]));
        }
    }
}

// Corners of an edge that crosses the image may be far outside. Positions in the image are then small differences of large
// numbers, which need doubles. If all corners of a group are near their origins, floats suffice and take half the time.
MIEN_INLINE void find_edges(const Frame& frame, Group& g) {
    constexpr double kNear = 32;  // pixels; floats represent them to 2e-6
    int32_t far = 0;
    for (int k = 0; k < 3; ++k)
        for (int i = 0; i < kGroup; ++i)
            far |= (__builtin_fabs(g.x[k][i]) > kNear) | (__builtin_fabs(g.y[k][i]) > kNear);
    if (far) find_edges_in<double>(frame, g);
    else find_edges_in<float>(frame, g);
}

MIEN_INLINE void find_depths(const Frame& frame, Group& g) {
    for (int i = 0; i < kGroup; ++i) {
        for (int k = 0; k < 3; ++k) g.depth_term[k][i] = frame.linear_depth ? (float)g.z[k][i] : 1.0f / (float)g.z[k][i];
        for (int k = 0; k < 2; ++k)
            g.zeta_slope[k][i] = (float)((g.z[2][i] - g.z[k][i]) * frame.zeta_per_depth) *
                                 (frame.linear_depth ? 1.0f : g.depth_term[k][i]);
        // Above 2^24 the float is not the floor of zeta any more, but the rest is the difference to the float.
        const double zeta = (frame.far_depth - g.z[2][i]) * frame.zeta_per_depth;
        g.zeta_whole[i] = (float)__builtin_floor(zeta);
        g.zeta_rest[i] = (float)(zeta - g.zeta_whole[i]);
    }
}

// Writes the visible ones of at most kGroup triangles, and their boxes, in order; returns their number.
int prepare_group(const Frame& frame, int first, int count, Triangle* triangles, Box* boxes) {
    Group g;
    load_group(frame, first, count, g);
    find_visible(frame, count, g);
    find_edges(frame, g);
    find_depths(frame, g);
    int drawn = 0;
    for (int i = 0; i < count; ++i) {
        if (!g.visible[i]) continue;
        Triangle& t = triangles[drawn];
        for (int k = 0; k < 3; ++k) {
            t.normal_x[k] = g.normal_x[k][i];
            t.normal_y[k] = g.normal_y[k][i];
            t.distance_at_origin[k] = g.distance_at_origin[k][i];
            t.start_along[k] = g.start_along[k][i];
            t.end_along[k] = g.end_along[k][i];
            t.depth_term[k] = g.depth_term[k][i];
            t.corner[k] = frame.corners[int64_t(3) * (first + i) + k];
        }
        for (int k = 0; k < 2; ++k) {
            t.inverse_height[k] = g.inverse_height[k + 1][i];
            t.zeta_slope[k] = g.zeta_slope[k][i];
        }
        t.winding = g.winding[i];
        t.zeta_whole = g.zeta_whole[i];
        t.zeta_rest = g.zeta_rest[i];
        t.id = first + i;
        t.origin_x = (int16_t)g.origin_x[i];
        t.origin_y = (int16_t)g.origin_y[i];
        boxes[drawn++] = {(int16_t)g.left[i], (int16_t)g.right[i], (int16_t)g.top[i], (int16_t)g.bottom[i]};
    }
    return drawn;
}

int prepare(const Frame& frame, int first, int end, Triangle* triangles, Box* boxes) {
    int drawn = 0;
    for (; first < end; first += kGroup)
        drawn += prepare_group(frame, first, lesser(kGroup, end - first), triangles + drawn, boxes + drawn);
    return drawn;
}

// Calls body(triangle, box) for the visible ones of the triangles [first, end), in order.
template <typename Body>
MIEN_INLINE void for_each_drawn(const Frame& frame, int first, int end, const Body& body) {
    Triangle triangles[kGroup];
    Box boxes[kGroup];
    for (; first < end; first += kGroup) {
        const int drawn = prepare_group(frame, first, lesser(kGroup, end - first), triangles, boxes);
        for (int i = 0; i < drawn; ++i) body(triangles[i], boxes[i]);
    }
}

}  // namespace
}  // namespace MIEN_ISA
}  // namespace mien
