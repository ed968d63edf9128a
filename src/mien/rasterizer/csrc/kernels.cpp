// The arithmetic of the soft rasterizer. Compiled once per instruction set; simd.hpp explains the rules for that.
//
//   setup.hpp     corners -> prepared triangles
//   pairs.hpp     one triangle and one block of pixels, as defined in reference.py
//   forward.hpp   pixels walk through triangles
//   backward.hpp  triangles walk through pixels
//
// Nothing is stored per pair, and the order of every sum does not depend on the number of threads.
#include "kernels.hpp"

#include "backward.hpp"
#include "forward.hpp"
#include "pairs.hpp"
#include "setup.hpp"
#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

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
        // Without this the compiler would see that all chains are equal.
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
