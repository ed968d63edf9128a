// The driver of gram.hpp: memory, and the copy of the kernels for this machine.
#include "gram.hpp"

#include <cstring>
#include <vector>

#include "soft_raster.hpp"

namespace mien {

#if defined(__x86_64__) || defined(__i386__)
AddGram add_gram_sse2();
AddGram add_gram_avx2();
AddGram add_gram_avx512();
#else
AddGram add_gram_baseline();
#endif

namespace {

AddGram add_gram() {
#if defined(__x86_64__) || defined(__i386__)
    const char* isa = current_isa();
    if (!std::strcmp(isa, "avx512")) return add_gram_avx512();
    return std::strcmp(isa, "avx2") ? add_gram_sse2() : add_gram_avx2();
#else
    return add_gram_baseline();
#endif
}

}  // namespace

void normal_equations(const LeastSquares& problem, double* hessian, double* gradient) {
    const int64_t unknowns = problem.unknowns, size = gram_size(unknowns);
    std::vector<double> sums(static_cast<size_t>(size * size)), scratch(static_cast<size_t>(kGramBlock * size));
    add_gram()(problem, sums.data(), scratch.data());
    for (int64_t i = 0; i < unknowns; ++i) {
        gradient[i] = sums[static_cast<size_t>(i * size + unknowns)];
        for (int64_t j = i; j < unknowns; ++j)
            hessian[i * unknowns + j] = hessian[j * unknowns + i] = sums[static_cast<size_t>(i * size + j)];
    }
}

}  // namespace mien
