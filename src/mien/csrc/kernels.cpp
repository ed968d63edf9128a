// The arithmetic of the soft rasterizer. Compiled once per instruction set; see simd.hpp for the rules that follow.
//
// Forward, blocks of 4 x kBlockRows pixels walk through the triangles that touch them and keep their sums in
// registers. Backward, triangles walk through the blocks of pixels that they touch and keep their gradients in
// registers: nothing is written per pair, and every sum has an order that does not depend on the number of threads.
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

// ------------------------------------------------------------------------------------------------ triangle setup

// Setup goes through the triangles in groups, with one array per quantity: loops over these become vector code.
constexpr int kGroup = 64;

// Positions are in double: this is where digits are lost, when nearby positions are subtracted.
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
    // What is left over of a group must only be finite.
    for (int i = count; i < kGroup; ++i)
        for (int k = 0; k < 3; ++k) g.x[k][i] = g.y[k][i] = g.z[k][i] = 0.0;
}

// Pixels whose centres lie between the lowest and the highest position, and the whole pixel that is the origin: the
// triangle's middle, or where that lies outside, the nearest pixel of the image. Positions may be anything finite: everything is
// bounded before it may become an integer.
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

// Of an edge that crosses the image, corners may be far outside, and what the image needs is the small rest of large
// numbers: those take doubles. Floats do, at half the time, where all corners of a group are near their origins.
MIEN_INLINE void find_edges(const Frame& frame, Group& g) {
    constexpr double kNear = 32;  // pixels, of which floats keep 2e-6
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
        // Above 2^24 the float is no longer zeta's floor, but the rest still knows what it is.
        const double zeta = (frame.far_depth - g.z[2][i]) * frame.zeta_per_depth;
        g.zeta_whole[i] = (float)__builtin_floor(zeta);
        g.zeta_rest[i] = (float)(zeta - g.zeta_whole[i]);
    }
}

// Writes those of at most kGroup triangles that can be seen at all, and their boxes, in order; returns how many.
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

// Calls body(triangle, box) for those of the triangles [first, end) that can be seen, in order.
template <typename Body>
MIEN_INLINE void for_each_drawn(const Frame& frame, int first, int end, const Body& body) {
    Triangle triangles[kGroup];
    Box boxes[kGroup];
    for (; first < end; first += kGroup) {
        const int drawn = prepare_group(frame, first, lesser(kGroup, end - first), triangles, boxes);
        for (int i = 0; i < drawn; ++i) body(triangles[i], boxes[i]);
    }
}

// ------------------------------------------------------------------------------------- one triangle, one pixel block

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
    Floats overshoot[3];  // by how much `along` lies beyond the edge's ends; 0 beside the edge
    Floats distance_sq[3];
    Mask inside;
};

// Distances to the lines only: what decides inside or outside.
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
    s.raw[2] = 1.0f - s.raw[0] - s.raw[1];  // so that at least one is >= 1/3, however thin the triangle
    for (int k = 0; k < 3; ++k) s.clamped[k] = linear ? maximum(s.raw[k], Floats{}) : clamp(s.raw[k], Floats{}, splat(1.0f));
    s.scale = reciprocal(s.clamped[0] + s.clamped[1] + s.clamped[2]);
    for (int k = 0; k < 3; ++k) s.clamped[k] *= s.scale;
    s.share[0] = s.clamped[0] * t.depth_term[0];
    s.share[1] = s.clamped[1] * t.depth_term[1];
    s.depth_term = s.share[0] + s.share[1] + s.clamped[2] * t.depth_term[2];
    s.z = linear ? s.depth_term : reciprocal(s.depth_term);
    s.in_range = at_most(s.z, splat((float)frame.far_depth));  // no corner is nearer than near
}

// The rest of zeta at the pixel; add zeta_whole for the whole of it.
template <typename Number>
MIEN_INLINE Floats zeta_rest(bool linear, const Shape<Number>& t, const Surface& s) {
    const Floats slope = s.clamped[0] * t.zeta_slope[0] + s.clamped[1] * t.zeta_slope[1];
    return (linear ? slope : s.z * slope) + t.zeta_rest;
}

struct Coverage {
    Floats covered;      // D
    Floats uncovered;    // 1 - D, with all its digits where D is near 1
};

MIEN_INLINE Coverage coverage(Mask inside, Floats distance_sq, float inverse_sigma) {
    const Floats odds_against = exponential(minimum(select(inside, -distance_sq, distance_sq) * inverse_sigma, splat(87.0f)));
    Coverage c;
    c.covered = reciprocal(1.0f + odds_against);
    c.uncovered = odds_against * c.covered;
    return c;
}

// ------------------------------------------------------------------------------------------------------ forward

// The nearest fragment so far.
struct Nearest {
    Floats z, weight0, weight1;  // barycentrics, divided by z where they are to be perspective-correct
    Ints id;
};

MIEN_INLINE Nearest no_fragment() {
    return {splat(__builtin_inff()), Floats{}, Floats{}, splat(int32_t(-1))};
}

MIEN_INLINE void keep_nearer(bool linear, Nearest& n, Mask covered, const Triangle& t, const Surface& s) {
    const Mask nearer = covered & less(s.z, n.z);
    n.z = select(nearer, s.z, n.z);
    n.weight0 = select(nearer, linear ? s.clamped[0] : s.share[0], n.weight0);
    n.weight1 = select(nearer, linear ? s.clamped[1] : s.share[1], n.weight1);
    n.id = select(nearer, splat(t.id), n.id);
}

// Where a block lies in the image, and how much of it.
struct Place {
    int x, y, columns, rows;
    int64_t first, stride;
    bool whole() const { return columns == kBlockColumns && rows == kBlockRows; }
};

MIEN_INLINE Place place(const Frame& frame, int row, int column) {
    Place p;
    p.x = column * kBlockColumns;
    p.y = row * kBlockRows;
    p.columns = lesser(kBlockColumns, frame.width - p.x);
    p.rows = lesser(kBlockRows, frame.height - p.y);
    p.stride = frame.width;
    p.first = (int64_t)p.y * frame.width + p.x;
    return p;
}

MIEN_INLINE void write(float* plane, const Place& at, Floats value) {
    if (at.whole()) return store_block(plane + at.first, at.stride, value);
    for (int row = 0; row < at.rows; ++row)
        for (int column = 0; column < at.columns; ++column)
            plane[at.first + row * at.stride + column] = value[row * kBlockColumns + column];
}

MIEN_INLINE void write_fragments(bool linear, const FragmentArrays& out, const Place& at, const Nearest& n) {
    const Mask hit = less(n.z, splat(__builtin_inff()));
    const Floats z = only(hit, n.z), factor = linear ? splat(1.0f) : z;
    const Floats b0 = n.weight0 * factor, b1 = n.weight1 * factor;
    const Floats b2 = maximum(only(hit, 1.0f - b0 - b1), Floats{});
    write(out.depth, at, z);
    for (int row = 0; row < at.rows; ++row) {
        const int64_t first = at.first + row * at.stride;
        for (int column = 0; column < at.columns; ++column) {
            const int lane = row * kBlockColumns + column;
            out.triangle_ids[first + column] = n.id[lane];
            float* b = out.barycentrics + 3 * (first + column);
            b[0] = b0[lane];
            b[1] = b1[lane];
            b[2] = b2[lane];
        }
    }
}

// PyTorch3D's definition is for those who move over, and leaves the fast kernels alone.
template <int Channels>
MIEN_INLINE bool is_linear(const Frame& frame) {
    return Channels ? false : frame.linear_depth;
}

// Channels = 0 stands for any number; then the sums live in `scratch` instead of registers.
template <int Channels>
void soft_band(const Frame& frame, const Band& band, const float* background, const SoftPlanes& out, float* scratch) {
    const int channels = Channels ? Channels : frame.channels;
    const bool linear = is_linear<Channels>(frame);
    const int64_t pixels = (int64_t)frame.height * frame.width;
    const Lattice within = lattice();
    Floats in_registers[Channels ? Channels : 1];
    Floats* const colour = Channels ? in_registers : (Floats*)scratch;

    for (int row = band.first_row; row < band.end_row; ++row) {
        for (int column = band.region_column; column < band.region_column + band.columns; ++column) {
            const Place at = place(frame, row, column);
            // The background opens the softmax: weight 1 at its own depth.
            Floats peak_whole = splat(frame.background_whole), peak_rest = splat(frame.background_rest);
            Floats weights = splat(1.0f), transmittance = splat(1.0f);
            for (int c = 0; c < channels; ++c) colour[c] = splat(background[c]);
            Nearest nearest = no_fragment();

            const int64_t block = band.block(row, column);
            for (int32_t i = band.start[block]; i < band.start[block + 1]; ++i) {
                const Triangle& t = band.triangles[band.list[i]];
                Edges e;
                measure(t, within.x + (float)(at.x - t.origin_x), within.y + (float)(at.y - t.origin_y), e);
                const Floats distance_sq = nearest_distance_sq(e);
                Mask kept = e.inside | less(distance_sq, splat(frame.reach_sq));
                if (!any(kept)) continue;
                Surface s;
                interpolate(frame, linear, t, e, s);
                kept = kept & s.in_range;

                const Coverage cover = coverage(e.inside, distance_sq, frame.inverse_sigma);
                transmittance *= select(kept, cover.uncovered, splat(1.0f));

                const Floats rest = zeta_rest(linear, t, s);
                const Floats above = (t.zeta_whole - peak_whole) + (rest - peak_rest);
                const Mask rises = kept & less(Floats{}, above);
                const Floats fade = exponential(minimum(above, -above));
                const Floats keep = select(rises, fade, splat(1.0f));
                const Floats weight = only(kept, cover.covered * select(rises, splat(1.0f), fade));
                peak_whole = select(rises, splat(t.zeta_whole), peak_whole);
                peak_rest = select(rises, rest, peak_rest);
                weights = weights * keep + weight;
                const Floats w0 = weight * s.clamped[0], w1 = weight * s.clamped[1], w2 = weight * s.clamped[2];
                const float* a0 = frame.attributes + (int64_t)t.corner[0] * channels;
                const float* a1 = frame.attributes + (int64_t)t.corner[1] * channels;
                const float* a2 = frame.attributes + (int64_t)t.corner[2] * channels;
                for (int c = 0; c < channels; ++c)
                    colour[c] = colour[c] * keep + (w0 * a0[c] + (w1 * a1[c] + w2 * a2[c]));

                keep_nearer(linear, nearest, kept & e.inside, t, s);
            }

            const Floats norm = 1.0f / weights;
            for (int c = 0; c < channels; ++c) write(out.image + c * pixels, at, colour[c] * norm);
            write(out.alpha, at, 1.0f - transmittance);
            write(out.state + kTransmittance * pixels, at, transmittance);
            write(out.state + kPeakWhole * pixels, at, peak_whole);
            write(out.state + kPeakRest * pixels, at, peak_rest);
            write(out.state + kWeightSum * pixels, at, weights);
            write_fragments(linear, out.fragments, at, nearest);
        }
    }
}

void soft_band_for(const Frame& frame, const Band& band, const float* background, const SoftPlanes& out, float* scratch) {
    switch (frame.linear_depth ? 0 : frame.channels) {
        case 1: return soft_band<1>(frame, band, background, out, scratch);
        case 3: return soft_band<3>(frame, band, background, out, scratch);
        case 4: return soft_band<4>(frame, band, background, out, scratch);
        case 6: return soft_band<6>(frame, band, background, out, scratch);
        default: return soft_band<0>(frame, band, background, out, scratch);
    }
}

void hard_band(const Frame& frame, const Band& band, const FragmentArrays& out) {
    constexpr bool linear = false;
    const Lattice within = lattice();
    for (int row = band.first_row; row < band.end_row; ++row) {
        for (int column = band.region_column; column < band.region_column + band.columns; ++column) {
            const Place at = place(frame, row, column);
            Nearest nearest = no_fragment();
            const int64_t block = band.block(row, column);
            for (int32_t i = band.start[block]; i < band.start[block + 1]; ++i) {
                const Triangle& t = band.triangles[band.list[i]];
                Edges e;
                measure_lines(t, within.x + (float)(at.x - t.origin_x), within.y + (float)(at.y - t.origin_y), e);
                if (!any(e.inside)) continue;
                Surface s;
                interpolate(frame, linear, t, e, s);
                keep_nearer(linear, nearest, e.inside & s.in_range, t, s);
            }
            write_fragments(linear, out, at, nearest);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ backward

void pack_rows(const Frame& frame, int first, int end, const SoftGradients& g, float* packed) {
    const int64_t pixels = (int64_t)frame.height * frame.width, record = int64_t(4) * pixel_quads(frame.channels);
    for (int y = first; y < end; ++y) {
        float* const row = packed + y * packed_row(frame);
        if (y >= frame.height) {
            memset(row, 0, sizeof(float) * packed_row(frame));
            continue;
        }
        const int64_t at = (int64_t)y * frame.width;
        for (int x = 0; x < frame.width; ++x) {
            float* const pixel = row + x * record;
            pixel[0] = g.state[kPeakWhole * pixels + at + x];
            pixel[1] = g.state[kPeakRest * pixels + at + x];
            pixel[2] = 1.0f / g.state[kWeightSum * pixels + at + x];
            pixel[3] = g.alpha_grad[at + x] * g.state[kTransmittance * pixels + at + x];
            float pull = 0;
            for (int c = 0; c < frame.channels; ++c) {
                const float image_grad = g.image_grad[c * pixels + at + x];
                pixel[kPixelHead + c] = image_grad;
                pull += g.image[c * pixels + at + x] * image_grad;
            }
            pixel[4] = pull;
            for (int64_t k = kPixelHead + frame.channels; k < record; ++k) pixel[k] = 0;
        }
        memset(row + frame.width * record, 0, sizeof(float) * kBlockReach * record);
    }
}

// Channels = 0 stands for any number; then what grows with it lives in the caller's scratch memory.
template <int Channels>
constexpr int kSums = (9 + 3 * Channels + 3) / 4 * 4;  // a multiple of four, for sum_four

// The attributes of a triangle, or of as many as there are lanes: those of corner 2, and the steps to corners 0 and 1.
template <typename Number>
struct Colours {
    Number *base, *step0, *step1;
};

// Adds what kLanes pairs of pixel and triangle give to their corners to `sums`: d loss / d x, y and depth term of the three
// corners, then of their attributes. x and y are relative to the triangle's origin, `pixels` are the records.
template <int Channels, typename Number>
MIEN_INLINE void add_pairs(const Frame& frame, const Shape<Number>& t, const Number (&inverse_length)[3],
                           const Colours<Number>& colours, Floats x, Floats y, Mask alive, const float* const* pixels,
                           Floats* scratch, Floats* sums) {
    const int channels = Channels ? Channels : frame.channels;
    const bool linear = is_linear<Channels>(frame);
    Edges e;
    measure(t, x, y, e);
    const Floats distance_sq = nearest_distance_sq(e);
    Mask kept = alive & (e.inside | less(distance_sq, splat(frame.reach_sq)));
    if (!any(kept)) return;
    Surface s;
    interpolate(frame, linear, t, e, s);
    kept = kept & s.in_range;

    Floats in_registers[Channels ? (kPixelHead + Channels + 3) / 4 * 4 : 1];
    Floats* const pixel = Channels ? in_registers : scratch;
    const float* quads[kLanes];
    for (int quad = 0; quad < pixel_quads(channels); ++quad) {
        for (int lane = 0; lane < kLanes; ++lane) quads[lane] = pixels[lane] + 4 * quad;
        load_quads(quads, pixel + 4 * quad);
    }
    const Floats peak_whole = pixel[0], peak_rest = pixel[1], norm = pixel[2], to_alpha = pixel[3], image_pull = pixel[4];
    const Floats* const to_image = pixel + kPixelHead;
    Floats *const to_x = sums, *const to_y = sums + 3, *const to_depth_term = sums + 6, *const to_attribute = sums + 9;

    const Coverage cover = coverage(e.inside, distance_sq, frame.inverse_sigma);
    const Floats covered = only(kept, cover.covered);
    const Floats above = (t.zeta_whole - peak_whole) + (zeta_rest(linear, t, s) - peak_rest);
    const Floats softness = exponential(minimum(above, Floats{})) * norm;
    const Floats weight = covered * softness;

    // Inner products of the image's gradient with the attributes: at corner 2, and along the steps to corners 0 and 1.
    const Floats weighted[3] = {weight * s.clamped[0], weight * s.clamped[1], weight * s.clamped[2]};
    Floats at_corner2 = -image_pull, along0 = {}, along1 = {};
    for (int c = 0; c < channels; ++c) {
        at_corner2 += to_image[c] * colours.base[c];
        along0 += to_image[c] * colours.step0[c];
        along1 += to_image[c] * colours.step1[c];
        for (int k = 0; k < 3; ++k) to_attribute[k * channels + c] += weighted[k] * to_image[c];
    }
    // How much the loss rises if this pair gains weight in the blend: its colour less the pixel's.
    const Floats gain = at_corner2 + s.clamped[0] * along0 + s.clamped[1] * along1;
    const Floats to_zeta = weight * gain;

    // 1. Through the coverage to the distance, and from there to the two ends of the nearest edge.
    const Floats to_log_odds = covered * (softness * gain * cover.uncovered + to_alpha);
    const Floats pull = to_log_odds * (-2.0f * frame.inverse_sigma);
    const Floats signed_pull = select(e.inside, pull, -pull);
    const Mask second = less(e.distance_sq[1], e.distance_sq[0]);
    const Mask third = less(e.distance_sq[2], minimum(e.distance_sq[0], e.distance_sq[1]));
    const auto of_nearest_edge = [&](const auto& of) {
        return select(third, splat(of[2]), select(second, splat(of[1]), splat(of[0])));
    };
    const Floats normal_x = of_nearest_edge(t.normal_x), normal_y = of_nearest_edge(t.normal_y);
    const Floats distance = of_nearest_edge(e.distance);
    const Floats overshoot = t.winding * of_nearest_edge(e.overshoot);
    // Of the way from the edge's first end to its second, of the nearest point.
    const Floats from_start = of_nearest_edge(e.along) - of_nearest_edge(t.start_along);
    const Floats fraction = clamp(from_start * of_nearest_edge(inverse_length), Floats{}, splat(1.0f));
    const Floats pull_x = signed_pull * (distance * normal_x + overshoot * normal_y);
    const Floats pull_y = signed_pull * (distance * normal_y - overshoot * normal_x);
    const Floats end_x = pull_x * fraction, end_y = pull_y * fraction;
    // Edge k starts at corner k and ends at corner k + 1.
    const Floats start[2] = {pull_x - end_x, pull_y - end_y};
    const auto add_ends = [&](Floats* to, Floats at_start, Floats at_end) {
        to[0] += select(third, at_end, select(second, Floats{}, at_start));
        to[1] += select(third, Floats{}, select(second, at_start, at_end));
        to[2] += select(third, at_start, select(second, at_end, Floats{}));
    };
    add_ends(to_x, start[0], end_x);
    add_ends(to_y, start[1], end_y);

    // 2. Through the clamped barycentrics (colour and depth) to all three corners. Everything is relative to barycentric 2,
    // which costs nothing as they sum to one, and saves the digits that they share. d zeta / d barycentric k is z² times
    // zeta_slope[k] / z of corner 2, or zeta_slope[k] alone if linear_depth.
    const Floats to_depth = linear ? to_zeta : to_zeta * s.z * s.z;
    const Number tail = linear ? one(t.depth_term[2]) : t.depth_term[2];
    const Floats to_clamped0 = weight * along0 + to_depth * (t.zeta_slope[0] * tail);
    const Floats to_clamped1 = weight * along1 + to_depth * (t.zeta_slope[1] * tail);
    const Floats mean = to_clamped0 * s.clamped[0] + to_clamped1 * s.clamped[1];
    const auto free = [&](int k) { return at_most(Floats{}, s.raw[k]) & at_most(s.raw[k], splat(linear ? __builtin_inff() : 1.0f)); };
    const Floats to_raw2 = only(free(2), mean);  // negated
    const Floats to_raw0 = (only(free(0), to_clamped0 - mean) + to_raw2) * s.scale * t.inverse_height[0];
    const Floats to_raw1 = (only(free(1), to_clamped1 - mean) + to_raw2) * s.scale * t.inverse_height[1];
    const Floats slope_x = to_raw0 * t.normal_x[1] + to_raw1 * t.normal_x[2];
    const Floats slope_y = to_raw0 * t.normal_y[1] + to_raw1 * t.normal_y[2];
    for (int k = 0; k < 3; ++k) {
        to_x[k] -= s.raw[k] * slope_x;
        to_y[k] -= s.raw[k] * slope_y;
        to_depth_term[k] += to_depth * s.clamped[k];
    }
}

// From the sums to the gradients of the corners: x y z, channels, of corners 0, 1 and 2. `sum` yields sum number i.
template <typename Sum>
MIEN_INLINE void write_corners(const Frame& frame, bool linear, const Shape<float>& t, int channels, const Sum& sum, float* out) {
    const float per_ndc = (float)frame.pixels_per_ndc;
    for (int k = 0; k < 3; ++k, out += 3 + channels) {
        out[0] = sum(k) * per_ndc;
        out[1] = sum(3 + k) * per_ndc;
        const float per_term = linear ? 1.0f : t.depth_term[k] * t.depth_term[k];
        out[2] = -sum(6 + k) * per_term * (float)frame.zeta_per_depth;
        for (int c = 0; c < channels; ++c) out[3 + c] = sum(9 + k * channels + c);
    }
}

// One triangle against all blocks of pixels in its box.
template <int Channels>
void backward_large(const Frame& frame, const Triangle& t, const Box& box, const float* packed, float* corners,
                    float* scratch) {
    const int channels = Channels ? Channels : frame.channels;
    const int sum_count = (9 + 3 * channels + 3) / 4 * 4;
    const int64_t row_size = packed_row(frame), record = int64_t(4) * pixel_quads(channels);
    Floats in_registers[Channels ? kSums<Channels> : 1];
    Floats* const sums = Channels ? in_registers : (Floats*)scratch;
    Floats* const pixel = sums + sum_count;
    float small[Channels ? kSums<Channels> + 3 * Channels : 1];
    float* const totals = Channels ? small : scratch + (int64_t)kLanes * (sum_count + record);
    const Colours<float> colours = {totals + sum_count, totals + sum_count + channels, totals + sum_count + 2 * channels};
    for (int c = 0; c < channels; ++c) {
        colours.base[c] = frame.attributes[(int64_t)t.corner[2] * channels + c];
        colours.step0[c] = frame.attributes[(int64_t)t.corner[0] * channels + c] - colours.base[c];
        colours.step1[c] = frame.attributes[(int64_t)t.corner[1] * channels + c] - colours.base[c];
    }
    float inverse_length[3];
    for (int k = 0; k < 3; ++k) inverse_length[k] = 1.0f / (t.end_along[k] - t.start_along[k]);
    const Lattice within = lattice();
    const Mask all = at_most(Floats{}, Floats{});
    for (int i = 0; i < sum_count; ++i) sums[i] = Floats{};
    for (int y = box.top; y <= box.bottom; y += kBlockRows) {
        for (int x = box.left; x <= box.right; x += kBlockColumns) {
            const float* pixels[kLanes];
            for (int lane = 0; lane < kLanes; ++lane)
                pixels[lane] = packed + (y + lane / kBlockColumns) * row_size + (x + lane % kBlockColumns) * record;
            add_pairs<Channels>(frame, t, inverse_length, colours, within.x + (float)(x - t.origin_x),
                                within.y + (float)(y - t.origin_y), all, pixels, pixel, sums);
        }
    }
    for (int i = 0; i < sum_count; i += 4) sum_four(sums + i, totals + i);
    write_corners(frame, is_linear<Channels>(frame), t, channels, [&](int i) { return totals[i]; }, corners);
}

// kLanes triangles at once, each walking through the pixels of its own box, row by row. Nothing has to be summed over
// lanes, and a triangle of a few pixels does not leave most of them idle. The boxes should be of similar size.
template <int Channels>
void backward_small(const Frame& frame, const Triangle* triangles, const Box* boxes, const int* chosen, int count,
                    const float* packed, int first, float* corners, float* scratch) {
    const int channels = Channels ? Channels : frame.channels;
    const int sum_count = 9 + 3 * channels;
    const int64_t row_size = packed_row(frame), record = int64_t(4) * pixel_quads(channels);
    Floats in_registers[Channels ? 9 + 6 * Channels : 1];
    Floats* const sums = Channels ? in_registers : (Floats*)scratch;
    const Colours<Floats> colours = {sums + sum_count, sums + sum_count + channels, sums + sum_count + 2 * channels};
    Floats* const pixel = sums + sum_count + 3 * channels;

    const Triangle* of_lane[kLanes];
    const float *first_pixel[kLanes], *quads[kLanes];
    Floats left, past, y, end;
    Ints row_jump;  // from the last pixel of a row to the first of the next
    int most = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        const int i = chosen[lesser(lane, count - 1)];
        const Triangle& t = *(of_lane[lane] = &triangles[i]);
        const Box& box = boxes[i];
        const int wide = box.right - box.left + 1, tall = box.bottom - box.top + 1;
        first_pixel[lane] = packed + box.top * row_size + box.left * record;
        left[lane] = (float)(box.left - t.origin_x) + 0.5f;
        y[lane] = (float)(box.top - t.origin_y) + 0.5f;
        past[lane] = left[lane] + (float)wide;
        row_jump[lane] = (int32_t)(row_size - (wide - 1) * record);
        end[lane] = (float)(wide * tall);
        most = greater(most, wide * tall);
        for (int c = 0; c < channels; ++c) {
            const float base = frame.attributes[(int64_t)t.corner[2] * channels + c];
            colours.base[c][lane] = base;
            colours.step0[c][lane] = frame.attributes[(int64_t)t.corner[0] * channels + c] - base;
            colours.step1[c][lane] = frame.attributes[(int64_t)t.corner[1] * channels + c] - base;
        }
    }
    alignas(sizeof(Floats)) Floats numbers[(kShapeNumbers + 3) / 4 * 4];
    for (int i = 0; i < kShapeNumbers; i += 4) {
        for (int lane = 0; lane < kLanes; ++lane) quads[lane] = (const float*)of_lane[lane] + i;
        load_quads(quads, numbers + i);
    }
    Shape<Floats> t;
    memcpy(&t, numbers, sizeof(t));
    Floats inverse_length[3];
    for (int k = 0; k < 3; ++k) inverse_length[k] = 1.0f / (t.end_along[k] - t.start_along[k]);

    for (int i = 0; i < sum_count; ++i) sums[i] = Floats{};
    Floats x = left;
    Ints offset = {};  // from the box's first pixel
    for (int step = 0; step < most; ++step) {
        const Mask alive = less(splat((float)step), end);
        const float* pixels[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) pixels[lane] = first_pixel[lane] + offset[lane];
        add_pairs<Channels>(frame, t, inverse_length, colours, x, y, alive, pixels, pixel, sums);
        // On to the next pixel; those that have no more stay where they are.
        const Mask on = less(splat((float)(step + 1)), end);
        x = x + 1.0f;
        const Mask wraps = at_most(past, x);
        x = select(wraps, left, x);
        y = y + only(wraps, splat(1.0f));
        const Ints next = offset + select(wraps, row_jump, splat((int32_t)record));
        offset = select(on, next, offset);
    }
    for (int lane = 0; lane < count; ++lane) {
        const Triangle& one = *of_lane[lane];
        write_corners(frame, is_linear<Channels>(frame), one, channels, [&](int i) { return sums[i][lane]; },
                      corners + (int64_t)(one.id - first) * 3 * (3 + channels));
    }
}

// Boxes of up to this many pixels go through backward_small; from 24 to 200 the time hardly changes.
constexpr int kSmallBox = 96;
constexpr int kChunk = 512;  // triangles among which those of similar size are looked for; they stay in the L2 cache

template <int Channels>
void backward(const Frame& frame, int first, int end, const float* packed, float* corners, float* scratch) {
    const int gradient_size = 3 * (3 + (Channels ? Channels : frame.channels));
    memset(corners, 0, sizeof(float) * (end - first) * gradient_size);
    Triangle triangles[kChunk];
    Box boxes[kChunk];
    int chosen[kChunk], start[kSmallBox + 2];
    for (int chunk = first; chunk < end; chunk += kChunk) {
        const int drawn = prepare(frame, chunk, lesser(chunk + kChunk, end), triangles, boxes);
        // A counting sort by size: start[n + 1] counts the boxes of n pixels, then is where they are filled in.
        memset(start, 0, sizeof(start));
        const auto pixels_of = [&](int i) {
            return (boxes[i].right - boxes[i].left + 1) * (boxes[i].bottom - boxes[i].top + 1);
        };
        for (int i = 0; i < drawn; ++i) {
            const int size = pixels_of(i);
            if (size <= kSmallBox) ++start[size + 1];
            else
                backward_large<Channels>(frame, triangles[i], boxes[i], packed,
                                         corners + (int64_t)(triangles[i].id - first) * gradient_size, scratch);
        }
        for (int size = 0; size <= kSmallBox; ++size) start[size + 1] += start[size];
        const int small = start[kSmallBox + 1];
        for (int i = 0; i < drawn; ++i) {
            const int size = pixels_of(i);
            if (size <= kSmallBox) chosen[start[size]++] = i;
        }
        for (int i = 0; i < small; i += kLanes)
            backward_small<Channels>(frame, triangles, boxes, chosen + i, lesser(kLanes, small - i), packed, first, corners,
                                     scratch);
    }
}

void backward_for(const Frame& frame, int first, int end, const float* packed, float* corners, float* scratch) {
    switch (frame.linear_depth ? 0 : frame.channels) {
        case 1: return backward<1>(frame, first, end, packed, corners, scratch);
        case 3: return backward<3>(frame, first, end, packed, corners, scratch);
        case 4: return backward<4>(frame, first, end, packed, corners, scratch);
        case 6: return backward<6>(frame, first, end, packed, corners, scratch);
        default: return backward<0>(frame, first, end, packed, corners, scratch);
    }
}

// -------------------------------------------------------------------------------------------------- measurements

int64_t count_pairs(const Frame& frame, int first, int end) {
    constexpr bool linear = false;
    const Lattice within = lattice();
    int64_t pairs = 0;
    for_each_drawn(frame, first, end, [&](const Triangle& t, const Box& box) {
        for (int y = box.top; y <= box.bottom; y += kBlockRows) {
            for (int x = box.left; x <= box.right; x += kBlockColumns) {
                Edges e;
                measure(t, within.x + (float)(x - t.origin_x), within.y + (float)(y - t.origin_y), e);
                Surface s;
                interpolate(frame, linear, t, e, s);
                const Mask in_image = less(within.x, splat((float)(frame.width - x))) &
                                      less(within.y, splat((float)(frame.height - y)));
                pairs += count((e.inside | less(nearest_distance_sq(e), splat(frame.reach_sq))) & s.in_range & in_image);
            }
        }
    });
    return pairs;
}

// Ten independent chains hide the latency of a multiply-add (four cycles on two ports, on most machines).
double multiply_adds(int rounds, int* flops_per_round) {
    const Floats factor = splat(0.999f);
    Floats a = factor, b = factor, c = factor, d = factor, e = factor, f = factor, g = factor, h = factor, i = factor,
           j = factor;
    const auto step = [&](Floats& chain) { chain = chain * factor + factor; };
    for (int round = 0; round < rounds; ++round) {
        step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i), step(j);
        // Else the compiler would see that all chains are the same.
#if defined(__aarch64__)
        __asm__ volatile("" : "+w"(a), "+w"(b), "+w"(c), "+w"(d), "+w"(e), "+w"(f), "+w"(g), "+w"(h), "+w"(i), "+w"(j));
#else
        __asm__ volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i), "+v"(j));
#endif
    }
    const Floats total = a + b + c + d + e + f + g + h + i + j;
    *flops_per_round = 2 * kLanes * 10;
    return total[0];
}

}  // namespace
}  // namespace MIEN_ISA

#define MIEN_QUOTED_(name) #name
#define MIEN_QUOTED(name) MIEN_QUOTED_(name)
#define MIEN_JOINED_(a, b) a##b
#define MIEN_JOINED(a, b) MIEN_JOINED_(a, b)

const Kernels& MIEN_JOINED(kernels_, MIEN_ISA)() {
    using namespace MIEN_ISA;
    static const Kernels kernels = {
        MIEN_QUOTED(MIEN_ISA), kBlockRows, prepare,     soft_band_for, hard_band,
        pack_rows,             backward_for, count_pairs, multiply_adds,
    };
    return kernels;
}

}  // namespace mien
