// The sums of equations.hpp. Compiled once per instruction set; simd.hpp explains the rules for that.
#include "equations.hpp"

#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

MIEN_INLINE Floats load(const float* from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}
MIEN_INLINE void store(float* to, Floats values) { memcpy(to, &values, sizeof values); }

// rows[channel][k] = Σ factors[channel][i] · basis[i][k], for `terms` rows of the basis.
template <int terms, typename Number>
MIEN_INLINE void mix(const float* const* basis, const float (*factors)[terms], int k, float* const* rows) {
    Number sum[3] = {};
    for (int i = 0; i < terms; ++i) {
        Number values;
        memcpy(&values, basis[i] + k, sizeof values);
        for (int channel = 0; channel < 3; ++channel) sum[channel] += factors[channel][i] * values;
    }
    for (int channel = 0; channel < 3; ++channel) memcpy(rows[channel] + k, &sum[channel], sizeof sum[channel]);
}

void add_shape(const ColourSamples& samples, int pixel, float scale, float* const* rows) {
    const float* basis[9];
    for (int i = 0; i < 9; ++i)
        basis[i] = samples.shape_basis + (int64_t(3) * samples.corners[3 * pixel + i / 3] + i % 3) * samples.shapes;
    float factors[3][9];
    for (int i = 0; i < 27; ++i) factors[i / 9][i % 9] = scale * samples.by_corner[27 * pixel + i];
    int k = 0;
    for (; k + kLanes <= samples.shapes; k += kLanes) mix<9, Floats>(basis, factors, k, rows);
    for (; k < samples.shapes; ++k) mix<9, float>(basis, factors, k, rows);
}

void add_albedo(const ColourSamples& samples, int pixel, float scale, float* const* rows) {
    for (int channel = 0; channel < 3; ++channel) {
        const float shading = scale * samples.shading[3 * pixel + channel];
        for (int k = 0; k < samples.albedos; ++k) rows[channel][k] = 0;
        for (int corner = 0; corner < 3; ++corner) {
            const int64_t vertex = samples.corners[3 * pixel + corner];
            const float* const basis = samples.albedo_basis + (3 * vertex + channel) * samples.albedos;
            const float factor = shading * samples.barycentrics[3 * pixel + corner];
            for (int k = 0; k < samples.albedos; ++k) rows[channel][k] += factor * basis[k];
        }
    }
}

// The three rows of a pixel, times the root of its weight.
void make_rows(const ColourSamples& samples, int pixel, float* first, int size) {
    const float scale = __builtin_sqrtf(samples.weights[pixel]);
    float* rows[3] = {first, first + size, first + 2 * size};
    const auto advance = [&](int count) {
        for (float*& row : rows) row += count;
    };
    add_shape(samples, pixel, scale, rows);
    advance(samples.shapes);
    for (int i = 0; i < 3 * kPoseUnknowns; ++i)
        rows[i / kPoseUnknowns][i % kPoseUnknowns] = scale * samples.by_pose[3 * kPoseUnknowns * pixel + i];
    advance(kPoseUnknowns);
    add_albedo(samples, pixel, scale, rows);
    advance(samples.albedos);
    for (int i = 0; i < 3 * kHarmonics; ++i) {
        for (int channel = 0; channel < 3; ++channel) rows[channel][i] = 0;
        const int own = i % 3;
        rows[own][i] = scale * samples.by_light[(3 * pixel + own) * kHarmonics + i / 3];
    }
    for (int channel = 0; channel < 3; ++channel) rows[channel][3 * kHarmonics] = scale * samples.errors[3 * pixel + channel];
}

// sums += rowsᵀ rows, where one tile is in registers at a time.
void add_products(const float* rows, int count, int size, float* sums) {
    constexpr int kColumns = 2 * kLanes;
    for (int i = 0; i < size; i += kTileRows) {
        for (int j = i / kColumns * kColumns; j < size; j += kColumns) {
            Floats tile[kTileRows][2];
            for (int k = 0; k < kTileRows; ++k)
                for (int half = 0; half < 2; ++half) tile[k][half] = load(sums + int64_t(i + k) * size + j + half * kLanes);
            for (int row = 0; row < count; ++row) {
                const float* const of = rows + int64_t(row) * size;
                const Floats low = load(of + j), high = load(of + j + kLanes);
                for (int k = 0; k < kTileRows; ++k) {
                    const Floats left = splat(of[i + k]);
                    tile[k][0] += left * low;
                    tile[k][1] += left * high;
                }
            }
            for (int k = 0; k < kTileRows; ++k)
                for (int half = 0; half < 2; ++half) store(sums + int64_t(i + k) * size + j + half * kLanes, tile[k][half]);
        }
    }
}

void add_colours(const ColourSamples& samples, int first, int end, float* sums, float* scratch) {
    const int size = padded_size(samples);
    memset(scratch, 0, equations_scratch(samples) * sizeof(float));  // the padding
    for (int block = first; block < end; block += kBlockPixels) {
        const int count = end - block < kBlockPixels ? end - block : kBlockPixels;
        for (int k = 0; k < count; ++k) make_rows(samples, block + k, scratch + int64_t(3) * k * size, size);
        add_products(scratch, 3 * count, size, sums);
    }
}

}  // namespace
}  // namespace MIEN_ISA

#define MIEN_JOIN(a, b) a##b
#define MIEN_NAMED(a, b) MIEN_JOIN(a, b)
AddColours MIEN_NAMED(add_colours_, MIEN_ISA)() { return MIEN_ISA::add_colours; }

}  // namespace mien
