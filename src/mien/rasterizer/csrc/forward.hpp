// Blocks of 4 x kBlockRows pixels walk through the triangles that touch them and keep their sums in registers.
#pragma once

#include "pairs.hpp"
#include "setup.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

// The nearest fragment so far.
struct Nearest {
    Floats z, weight0, weight1;  // barycentrics, divided by z if they are perspective-correct
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

// The part of a block that lies in the image, and its place.
struct BlockPosition {
    int x, y, columns, rows;
    int64_t first, stride;
    bool whole() const { return columns == kBlockColumns && rows == kBlockRows; }
};

MIEN_INLINE BlockPosition block_position(const Frame& frame, int row, int column) {
    BlockPosition p;
    p.x = column * kBlockColumns;
    p.y = row * kBlockRows;
    p.columns = lesser(kBlockColumns, frame.width - p.x);
    p.rows = lesser(kBlockRows, frame.height - p.y);
    p.stride = frame.width;
    p.first = (int64_t)p.y * frame.width + p.x;
    return p;
}

MIEN_INLINE void write(float* plane, const BlockPosition& at, Floats value) {
    if (at.whole()) return store_block(plane + at.first, at.stride, value);
    for (int row = 0; row < at.rows; ++row)
        for (int column = 0; column < at.columns; ++column)
            plane[at.first + row * at.stride + column] = value[row * kBlockColumns + column];
}

MIEN_INLINE void write_fragments(bool linear, const FragmentArrays& out, const BlockPosition& at, const Nearest& n) {
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

// Channels = 0 means any number; then the sums are in `scratch` instead of registers.
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
            const BlockPosition at = block_position(frame, row, column);
            // The softmax starts with the background: weight 1 at its own depth.
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
            const BlockPosition at = block_position(frame, row, column);
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

}  // namespace
}  // namespace MIEN_ISA
}  // namespace mien
