// The normal equations of colour errors: for sampled pixels, the sum of weight · Jᵀ J and weight · Jᵀ error.
//
// One pixel has one row per colour channel. Its derivatives by the shape are those by the corners of the triangle that it
// shows, times the basis at these corners. Rows are made and summed in blocks that stay in the processor's cache; the
// matrix of all rows, 7 MB for 2,000 pixels, is never in memory.
#pragma once

#include <cstdint>

namespace mien {

// Unknowns in the order shape, pose, albedo, light; light in the order harmonic, channel.
struct ColourSamples {
    int pixels, shapes, albedos;
    const int32_t* corners;       // N 3, vertices
    const float* barycentrics;    // N 3
    const float* by_corner;       // N 3 9: derivative of each channel by the positions of the corners
    const float* by_pose;         // N 3 6
    const float* shading;         // N 3
    const float* by_light;        // N 3 9: derivative of each channel by its own light
    const float* errors;          // N 3
    const float* weights;         // N
    const float* shape_basis;     // V 3 shapes
    const float* albedo_basis;    // V 3 albedos
};

constexpr int kPoseUnknowns = 6, kHarmonics = 9;
static inline int unknowns_of(const ColourSamples& samples) {
    return samples.shapes + kPoseUnknowns + samples.albedos + 3 * kHarmonics;
}

// The sums have one more row and column, for the errors, and are padded to whole tiles: a tile is `kTileRows` rows by two
// vectors.
constexpr int kTileRows = 6;
constexpr int kRowMultiple = 96;
static inline int padded_size(const ColourSamples& samples) {
    return (unknowns_of(samples) + kRowMultiple) / kRowMultiple * kRowMultiple;
}

constexpr int kBlockPixels = 8;
static inline int64_t equations_scratch(const ColourSamples& samples) { return int64_t(3) * kBlockPixels * padded_size(samples); }

// Adds the pixels [first, end) to the upper triangle of `sums` (padded_size², row by row).
using AddColours = void (*)(const ColourSamples&, int first, int end, float* sums, float* scratch);

#if defined(__x86_64__) || defined(__i386__)
AddColours add_colours_sse2();
AddColours add_colours_avx2();
AddColours add_colours_avx512();
#else
AddColours add_colours_baseline();
#endif

// hessian (M M) and gradient (M) of all pixels; they do not depend on the number of threads.
void colour_equations(const ColourSamples& samples, int threads, float* hessian, float* gradient);

}  // namespace mien
