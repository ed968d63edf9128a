// The sums of gram.hpp. Compiled once per instruction set; simd.hpp explains the rules for that.
#include "gram.hpp"

#include "simd.hpp"

namespace mien {
namespace MIEN_ISA {
namespace {

constexpr int kDoubles = kLanes / 2;
typedef double Doubles __attribute__((vector_size(8 * kDoubles)));

MIEN_INLINE Doubles load(const double* from) {
    Doubles values;
    memcpy(&values, from, sizeof values);
    return values;
}
MIEN_INLINE void store(double* to, Doubles values) { memcpy(to, &values, sizeof values); }

// sums += rowsᵀ rows, where one tile is in registers at a time.
void add_products(const double* rows, int count, int64_t size, double* sums) {
    constexpr int kColumns = 2 * kDoubles;
    for (int64_t i = 0; i < size; i += kGramTile) {
        for (int64_t j = i / kColumns * kColumns; j < size; j += kColumns) {
            double* const first = sums + i * size + j;
            Doubles tile[kGramTile][2];
            for (int k = 0; k < kGramTile; ++k)
                for (int half = 0; half < 2; ++half) tile[k][half] = load(first + k * size + half * kDoubles);
            for (int row = 0; row < count; ++row) {
                const double* const of = rows + row * size;
                const Doubles low = load(of + j), high = load(of + j + kDoubles);
                for (int k = 0; k < kGramTile; ++k) {
                    const Doubles left = of[i + k] - Doubles{};
                    tile[k][0] += left * low;
                    tile[k][1] += left * high;
                }
            }
            for (int k = 0; k < kGramTile; ++k)
                for (int half = 0; half < 2; ++half) store(first + k * size + half * kDoubles, tile[k][half]);
        }
    }
}

void add_gram(const LeastSquares& problem, double* sums, double* scratch) {
    const int64_t size = gram_size(problem.unknowns), unknowns = problem.unknowns;
    for (int64_t first = 0; first < problem.rows; first += kGramBlock) {
        const int count = (int)(problem.rows - first < kGramBlock ? problem.rows - first : kGramBlock);
        for (int row = 0; row < count; ++row) {
            const double root = __builtin_sqrt(problem.weights[first + row]);
            const double* const from = problem.jacobian + (first + row) * unknowns;
            double* const to = scratch + row * size;
            for (int64_t k = 0; k < unknowns; ++k) to[k] = root * from[k];
            to[unknowns] = root * problem.residuals[first + row];
            for (int64_t k = unknowns + 1; k < size; ++k) to[k] = 0;
        }
        add_products(scratch, count, size, sums);
    }
}

}  // namespace
}  // namespace MIEN_ISA

#define MIEN_JOINED_(a, b) a##b
#define MIEN_JOINED(a, b) MIEN_JOINED_(a, b)

AddGram MIEN_JOINED(add_gram_, MIEN_ISA)() { return MIEN_ISA::add_gram; }

}  // namespace mien
