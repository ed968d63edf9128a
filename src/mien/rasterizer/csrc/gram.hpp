// The normal equations of a least-squares problem with few unknowns: Jᵀ W J and Jᵀ W r in double precision.
//
// One pass over the rows: they are scaled by the root of their weight and summed in blocks that stay in the cache. Only the
// upper triangle is summed, which halves the work of a general matrix product.
#pragma once

#include <cstdint>

namespace mien {

struct LeastSquares {
    int64_t rows, unknowns;
    const double* jacobian;   // rows unknowns
    const double* residuals;  // rows
    const double* weights;    // rows, not negative
};

constexpr int kGramTile = 6;     // rows of a tile of the sums; its columns are two vectors
constexpr int kGramBlock = 24;   // rows of the Jacobian
constexpr int kGramMultiple = 48;
// The sums have one more row and column, for the residuals, and are padded to whole tiles.
static inline int64_t gram_size(int64_t unknowns) { return (unknowns + kGramMultiple) / kGramMultiple * kGramMultiple; }

// Adds all rows to the upper triangle of `sums` (gram_size²); `scratch` has room for kGramBlock rows of that size.
typedef void (*AddGram)(const LeastSquares&, double* sums, double* scratch);

// hessian (unknowns unknowns) and gradient (unknowns); one thread, so that the order of the sums is fixed.
void normal_equations(const LeastSquares& problem, double* hessian, double* gradient);

}  // namespace mien
