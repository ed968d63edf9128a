// Divides the pixels into parts, whose sums are added in order.
#include "equations.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "parallel.hpp"
#include "soft_raster.hpp"

namespace mien {
namespace {

// A fixed number, so that the sums do not depend on the number of threads.
constexpr int kParts = 4;

AddColours add_colours() {
#if defined(__x86_64__) || defined(__i386__)
    const std::string isa = current_isa();
    if (isa == "avx512") return add_colours_avx512();
    if (isa == "avx2") return add_colours_avx2();
    return add_colours_sse2();
#else
    return add_colours_baseline();
#endif
}

}  // namespace

void colour_equations(const ColourSamples& samples, int threads, float* hessian, float* gradient) {
    const int size = padded_size(samples), unknowns = unknowns_of(samples);
    const size_t area = size_t(size) * size, scratch = equations_scratch(samples);
    std::vector<float> sums(kParts * area), rows(kParts * scratch);
    const AddColours add = add_colours();
    Team::run(std::min(threads, kParts), [&](Team& team) {
        team.parallel_for(kParts, [&](int part, int) {
            const auto start = [&](int k) { return static_cast<int>(int64_t(samples.pixels) * k / kParts); };
            add(samples, start(part), start(part + 1), sums.data() + part * area, rows.data() + part * scratch);
        });
    });
    for (int part = 1; part < kParts; ++part)
        for (size_t k = 0; k < area; ++k) sums[k] += sums[part * area + k];
    for (int i = 0; i < unknowns; ++i) {
        gradient[i] = sums[size_t(i) * size + unknowns];
        for (int j = i; j < unknowns; ++j)
            hessian[size_t(i) * unknowns + j] = hessian[size_t(j) * unknowns + i] = sums[size_t(i) * size + j];
    }
}

}  // namespace mien
