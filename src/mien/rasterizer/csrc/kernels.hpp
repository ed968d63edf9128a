// Declarations shared by the driver (soft_raster.cpp) and the kernels (kernels.cpp, one copy per instruction set).
#pragma once

#include "soft_raster.hpp"

namespace mien {

// The constants of one image of the batch, which do not depend on the triangle.
//
// Geometry is computed in pixels relative to a whole pixel near each triangle. Differences of nearby positions then keep
// all their digits; the NDC coordinates of a small triangle would share their leading digits.
struct Frame {
    int height, width;
    double pixels_per_ndc;           // half the shorter side
    double reach;                    // distance in pixels at which a triangle still has an effect
    float reach_sq;
    float inverse_sigma;             // per square pixel
    double near_depth, far_depth;
    double zeta_per_depth;           // 1 / ((far - near) gamma)
    float background_whole, background_rest;  // zeta of the background, split as in Triangle
    bool cull_backfaces;
    bool linear_depth;
    int vertices, channels;
    const float* positions;          // V 3
    const int32_t* corners;          // T 3
    const float* attributes;         // V C
};

// The numbers of a triangle that pixels use. Number is float for one triangle against many pixels, and a vector for one
// triangle per lane, each against its own pixel. Edge k runs from corner k to corner k + 1; its `distance` is signed,
// positive inside.
//
// zeta = z_norm / gamma is the exponent of the softmax. It reaches 1e4 and more, where float32 keeps three decimals.
// Therefore zeta at corner 2 is split into a whole number and a rest, and only the difference to that corner is computed
// per pixel. Differences between triangles are (whole - whole) + (rest - rest).
template <typename Number>
struct Shape {
    Number normal_x[3], normal_y[3];  // unit, inward
    Number distance_at_origin[3];     // distance = normal · p + this
    Number start_along[3];            // direction · first corner; direction = winding (normal_y, -normal_x)
    Number end_along[3];              // direction · second corner: one may be far outside, the other not
    Number inverse_height[2];         // barycentric 0 = distance to edge 1 times [0]; 1 = distance to edge 2 times [1]
    Number winding;                   // +1 if the corners run clockwise for the viewer, else -1
    Number depth_term[3];             // linear on the screen: 1 / z, or z if frame.linear_depth
    Number zeta_slope[2];             // zeta - zeta(corner 2) = (b0 slope0 + b1 slope1), times z unless linear_depth
    Number zeta_whole, zeta_rest;     // at corner 2
};
constexpr int kShapeNumbers = sizeof(Shape<float>) / sizeof(float);

// A prepared triangle.
struct alignas(64) Triangle : Shape<float> {
    int32_t corner[3];
    int32_t id;
    int16_t origin_x, origin_y;      // the whole pixel that positions are relative to
};

// First and last pixel that a triangle may touch, both inclusive.
struct Box {
    int16_t left, right, top, bottom;
};

// Results of one image: slices of the arrays of the batch.
struct SoftPlanes {
    float* image;
    float* alpha;
    float* state;
    FragmentArrays fragments;
};

// The triangles that touch the blocks of a region, of which the rows [first_row, end_row) are rasterized:
// `list[start[i]] ... list[start[i + 1] - 1]` are positions in `triangles`, in rising order, for the region's block i,
// row by row.
struct Band {
    int first_row, end_row;          // in blocks of the image, as is ...
    int region_row, region_column;   // ... the region's first block
    int columns;                     // of the region
    const int32_t* start;
    const int32_t* list;
    const Triangle* triangles;
    int64_t block(int row, int column) const { return int64_t(row - region_row) * columns + column - region_column; }
};

struct Kernels {
    const char* name;
    int block_rows;  // blocks are 4 columns wide
    // Writes those of the triangles [first, end) that are visible, and their boxes, in order; returns their number.
    int (*prepare)(const Frame&, int first, int end, Triangle*, Box*);
    void (*soft_band)(const Frame&, const Band&, const float* background, const SoftPlanes&, float* scratch);
    void (*hard_band)(const Frame&, const Band&, const FragmentArrays&);
    // Gathers the rows [first, end) of what the backward pass reads per pixel; see `kPixelHead`.
    void (*pack_rows)(const Frame&, int first, int end, const SoftGradients&, float* packed);
    // Writes the gradients of the triangles [first, end) to corners[((triangle - first) * 3 + corner) * (3 + C)], zeros for
    // those that are not visible.
    void (*backward)(const Frame&, int first, int end, const float* packed, float* corners, float* scratch);
    int64_t (*count_pairs)(const Frame&, int first, int end);
    double (*multiply_adds)(int rounds, int* flops_per_round);
};

// The record of a pixel for the backward pass: the peak of the softmax (2 numbers), the reciprocal weight sum, d loss/d alpha
// times the transmittance, the inner product of image and image gradient, and the channels of the image gradient; padded to
// whole quads, because the kernels load quads. Rows and columns of zeros follow the image, so that a block of pixels that
// starts inside the image can be read whole.
constexpr int kPixelHead = 5;
constexpr int kBlockReach = 16;  // no block is wider or taller
inline int pixel_quads(int channels) { return (kPixelHead + channels + 3) / 4; }
inline int64_t packed_row(const Frame& frame) { return (frame.width + kBlockReach) * int64_t(4) * pixel_quads(frame.channels); }
inline int64_t packed_size(const Frame& frame) { return packed_row(frame) * (frame.height + kBlockReach); }

// Scratch that soft_band and backward need for meshes of any number of channels, in floats.
inline int64_t scratch_size(int channels) { return int64_t(16) * (7 * channels + 24) + int64_t(9) * channels + 40; }

#if defined(__x86_64__) || defined(__i386__)
const Kernels& kernels_sse2();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#else
const Kernels& kernels_baseline();
#endif

}  // namespace mien
