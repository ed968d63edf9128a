// Vectors of kLanes floats, as wide as the instruction set of this translation unit.
//
// kernels.cpp and its includes are compiled once per instruction set, each time in a namespace with the name of that set, so
// that the linker cannot merge the AVX-512 copy of a function with that of the baseline. For the same reason nothing here
// or in the kernels calls an inline function of the standard library.
//
// Arithmetic uses the vector extension of the compiler. Intrinsics appear only where the extension has no operation
// (minimum, reciprocal estimate) or a slow one (masks, which AVX-512 keeps in separate registers). The number of lanes
// follows the register width, because GCC compiles wider vectors badly.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef MIEN_ISA
#error "MIEN_ISA names the instruction set that this file is compiled for"
#endif

#define MIEN_INLINE static inline __attribute__((always_inline))

namespace mien {
namespace MIEN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

// x - 0 is x for every x, which x + 0 is not (-0), so the compiler turns this into a bare broadcast.
MIEN_INLINE Floats splat(float x) { return x - Floats{}; }
MIEN_INLINE Ints splat(int32_t x) { return x - Ints{}; }
// For templates in which the Number of Shape is a float or a vector.
MIEN_INLINE Floats splat(Floats x) { return x; }
MIEN_INLINE float one(float) { return 1.0f; }
MIEN_INLINE Floats one(Floats) { return splat(1.0f); }

#if defined(__AVX512F__)

typedef __mmask16 Mask;
MIEN_INLINE Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
MIEN_INLINE Mask at_most(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
MIEN_INLINE bool any(Mask m) { return m != 0; }
MIEN_INLINE int count(Mask m) { return __builtin_popcount(m); }
MIEN_INLINE Floats select(Mask m, Floats a, Floats b) { return (Floats)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
MIEN_INLINE Ints select(Mask m, Ints a, Ints b) { return (Ints)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
MIEN_INLINE Floats only(Mask m, Floats a) { return (Floats)_mm512_maskz_mov_ps(m, (__m512)a); }
MIEN_INLINE Floats minimum(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
MIEN_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
MIEN_INLINE Floats reciprocal_estimate(Floats a) { return (Floats)_mm512_rcp14_ps((__m512)a); }

#elif defined(__AVX2__)

typedef Ints Mask;
MIEN_INLINE Mask less(Floats a, Floats b) { return a < b; }
MIEN_INLINE Mask at_most(Floats a, Floats b) { return a <= b; }
MIEN_INLINE bool any(Mask m) { return _mm256_movemask_ps((__m256)m) != 0; }
MIEN_INLINE int count(Mask m) { return __builtin_popcount(_mm256_movemask_ps((__m256)m)); }
MIEN_INLINE Floats select(Mask m, Floats a, Floats b) { return (Floats)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
MIEN_INLINE Ints select(Mask m, Ints a, Ints b) { return (Ints)select(m, (Floats)a, (Floats)b); }
MIEN_INLINE Floats only(Mask m, Floats a) { return (Floats)((Ints)a & m); }
MIEN_INLINE Floats minimum(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
MIEN_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
MIEN_INLINE Floats reciprocal_estimate(Floats a) { return (Floats)_mm256_rcp_ps((__m256)a); }

#else

typedef Ints Mask;
MIEN_INLINE Mask less(Floats a, Floats b) { return a < b; }
MIEN_INLINE Mask at_most(Floats a, Floats b) { return a <= b; }
MIEN_INLINE Floats select(Mask m, Floats a, Floats b) { return (Floats)(((Ints)a & m) | ((Ints)b & ~m)); }
MIEN_INLINE Ints select(Mask m, Ints a, Ints b) { return (a & m) | (b & ~m); }
MIEN_INLINE Floats only(Mask m, Floats a) { return (Floats)((Ints)a & m); }
#if defined(__SSE2__)
MIEN_INLINE bool any(Mask m) { return _mm_movemask_ps((__m128)m) != 0; }
MIEN_INLINE Floats minimum(Floats a, Floats b) { return (Floats)_mm_min_ps((__m128)a, (__m128)b); }
MIEN_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm_max_ps((__m128)a, (__m128)b); }
MIEN_INLINE Floats reciprocal_estimate(Floats a) { return (Floats)_mm_rcp_ps((__m128)a); }
#elif defined(__aarch64__)
MIEN_INLINE bool any(Mask m) { return vmaxvq_u32((uint32x4_t)m) != 0; }
MIEN_INLINE Floats minimum(Floats a, Floats b) { return (Floats)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
MIEN_INLINE Floats maximum(Floats a, Floats b) { return (Floats)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
#else
MIEN_INLINE bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
MIEN_INLINE Floats minimum(Floats a, Floats b) { return select(less(a, b), a, b); }
MIEN_INLINE Floats maximum(Floats a, Floats b) { return select(less(b, a), a, b); }
#endif
MIEN_INLINE int count(Mask m) { return -(m[0] + m[1] + m[2] + m[3]); }

#endif

MIEN_INLINE Floats clamp(Floats x, Floats low, Floats high) { return minimum(maximum(x, low), high); }

// 1 / x within about 2 units in the last place, for x that is normal and positive: an estimate and one Newton step
// take a fifth of the time of a division.
MIEN_INLINE Floats reciprocal(Floats x) {
#if defined(__SSE2__)
    const Floats r = reciprocal_estimate(x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// exp(x), relative error about 2e-7, for x up to 87, the end of the range of floats; below -87 it is 0 or almost 0.
// x = n ln 2 + f with |f| <= ln 2 / 2; a polynomial gives exp(f), and n is added to the bits of the exponent.
MIEN_INLINE Floats exponential(Floats x) {
#if defined(__AVX512F__)
    x = maximum(x, splat(-104.0f));  // for smaller x, x - n ln 2 would keep no digits
    const Floats n = (Floats)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
#else
    x = maximum(x, splat(-87.0f));
    const float kRounder = 12582912.0f;  // 1.5 · 2^23: adding it leaves round(x) in the low bits of the mantissa
    const Floats shifted = x * 1.44269504f + kRounder;
    const Floats n = shifted - kRounder;
#endif
    const Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: the first is exact times n
    // Minimax polynomial of exp(f) - 1 - f over |f| <= ln 2 / 2, from Cephes' expf.
    Floats p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + (f + 1.0f);
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (Floats)((Ints)p + ((Ints)shifted << 23));
#endif
}

// A block of pixels is kBlockColumns x kBlockRows; lane l is column l % 4 of row l / 4.
constexpr int kBlockColumns = 4;
constexpr int kBlockRows = kLanes / kBlockColumns;

// Each 128-bit part of four vectors is a matrix, which is transposed: number k of vector j becomes number j of vector k.
MIEN_INLINE void transpose_parts(const Floats* of_part, Floats* quad) {
#if defined(__AVX512F__)
#define MIEN_INTERLEAVE(a, b, from)                                                                                    \
    (Floats) __builtin_shufflevector(a, b, from, 16 + from, 1 + from, 17 + from, 4 + from, 20 + from, 5 + from,        \
                                     21 + from, 8 + from, 24 + from, 9 + from, 25 + from, 12 + from, 28 + from,        \
                                     13 + from, 29 + from)
#define MIEN_PAIRS(a, b, from)                                                                                         \
    (Floats) __builtin_shufflevector(a, b, from, 1 + from, 16 + from, 17 + from, 4 + from, 5 + from, 20 + from,        \
                                     21 + from, 8 + from, 9 + from, 24 + from, 25 + from, 12 + from, 13 + from,        \
                                     28 + from, 29 + from)
#elif defined(__AVX2__)
#define MIEN_INTERLEAVE(a, b, from)                                                                                    \
    (Floats) __builtin_shufflevector(a, b, from, 8 + from, 1 + from, 9 + from, 4 + from, 12 + from, 5 + from, 13 + from)
#define MIEN_PAIRS(a, b, from)                                                                                         \
    (Floats) __builtin_shufflevector(a, b, from, 1 + from, 8 + from, 9 + from, 4 + from, 5 + from, 12 + from, 13 + from)
#else
#define MIEN_INTERLEAVE(a, b, from) (Floats) __builtin_shufflevector(a, b, from, 4 + from, 1 + from, 5 + from)
#define MIEN_PAIRS(a, b, from) (Floats) __builtin_shufflevector(a, b, from, 1 + from, 4 + from, 5 + from)
#endif
    const Floats low01 = MIEN_INTERLEAVE(of_part[0], of_part[1], 0), high01 = MIEN_INTERLEAVE(of_part[0], of_part[1], 2);
    const Floats low23 = MIEN_INTERLEAVE(of_part[2], of_part[3], 0), high23 = MIEN_INTERLEAVE(of_part[2], of_part[3], 2);
    quad[0] = MIEN_PAIRS(low01, low23, 0);
    quad[1] = MIEN_PAIRS(low01, low23, 2);
    quad[2] = MIEN_PAIRS(high01, high23, 0);
    quad[3] = MIEN_PAIRS(high01, high23, 2);
#undef MIEN_INTERLEAVE
#undef MIEN_PAIRS
}

// Out of each quad of four floats at first[lane] + offset, its number k goes to lane `lane` of quad[k].
MIEN_INLINE void load_quads(const float* const* first, int64_t offset, Floats* quad) {
    Floats of_part[4];  // vector j takes, in each part p, the quad of lane 4 p + j
    for (int j = 0; j < 4; ++j) {
#if defined(__AVX512F__)
        const auto load = [&](int lane) { return _mm_loadu_ps(first[lane] + offset); };
        const __m512 first_two =
            _mm512_castps256_ps512(_mm256_insertf128_ps(_mm256_castps128_ps256(load(j)), load(j + 4), 1));
        const __m256 last_two = _mm256_insertf128_ps(_mm256_castps128_ps256(load(j + 8)), load(j + 12), 1);
        of_part[j] = (Floats)_mm512_insertf32x8(first_two, last_two, 1);
#else
        for (int part = 0; part < kLanes / 4; ++part) memcpy((float*)&of_part[j] + 4 * part, first[j + 4 * part] + offset, 16);
#endif
    }
    transpose_parts(of_part, quad);
}

// The reverse, to kLanes quads that are `stride` floats apart.
MIEN_INLINE void store_quads(const Floats* quad, float* to, int64_t stride) {
    Floats of_part[4];
    transpose_parts(quad, of_part);
    for (int j = 0; j < 4; ++j)
        for (int part = 0; part < kLanes / 4; ++part)
            memcpy(to + (4 * part + j) * stride, (const float*)&of_part[j] + 4 * part, 16);
}

// Eight floats, with fewer loads than twice load_quads.
MIEN_INLINE void load_octets(const float* const* first, int64_t offset, Floats* octet) {
#if defined(__AVX512F__)
    const auto load = [&](int lane) { return _mm256_loadu_ps(first[lane] + offset); };
    Floats low[4], high[4];
    for (int half = 0; half < 2; ++half) {
        // The parts of vector j are the two quads of lane 8 half + j, then those of lane 8 half + 4 + j.
        Floats of_part[4];
        for (int j = 0; j < 4; ++j)
            of_part[j] =
                (Floats)_mm512_insertf32x8(_mm512_castps256_ps512(load(8 * half + j)), load(8 * half + 4 + j), 1);
        transpose_parts(of_part, half ? high : low);
    }
    for (int k = 0; k < 4; ++k) {
        octet[k] = (Floats)_mm512_shuffle_f32x4((__m512)low[k], (__m512)high[k], 0x88);
        octet[4 + k] = (Floats)_mm512_shuffle_f32x4((__m512)low[k], (__m512)high[k], 0xdd);
    }
#else
    load_quads(first, offset, octet);
    load_quads(first, offset + 4, octet + 4);
#endif
}

// To four floats of each of kBlockRows rows, `stride` floats apart.
MIEN_INLINE void store_block(float* first, long stride, Floats block) {
    for (int row = 0; row < kBlockRows; ++row) memcpy(first + row * stride, (const float*)&block + 4 * row, 16);
}

// The sums of the lanes of four vectors, each in the same fixed order; the four together cost little more than one.
MIEN_INLINE void sum_four(const Floats* vectors, float* sums) {
    typedef float Four __attribute__((vector_size(16)));
    Four v[4];
    for (int k = 0; k < 4; ++k) {
        Four parts[kLanes / 4];
        memcpy(parts, &vectors[k], sizeof(Floats));
        for (int half = kLanes / 8; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
        v[k] = parts[0];
    }
    // A transposition of 4 x 4 that adds on its way.
    const Four ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) + __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const Four cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) + __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    const Four abcd = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    memcpy(sums, &abcd, 16);
}

}  // namespace MIEN_ISA
}  // namespace mien
