// Products of matrices with factors of few columns.
#pragma once

#include <vector>

#include "base.hpp"

namespace hvd {

// Matrices of one shape at offsets of a vector. Each has a factor of `rank` columns; the factors are contiguous.
struct Matrices {
    std::vector<int64_t> offsets;
    int64_t rows, columns;
    int rank;

    int64_t count() const { return static_cast<int64_t>(offsets.size()); }
};

// Writes M Q; with `plus`, which lies as the vector does, M becomes M + plus before.
void times(const Matrices& m, float* vector, const float* plus, const float* right, float* out);
// Writes Q = M^T P; for the `rest` M becomes M - P Q^T.
void times_transposed(const Matrices& m, float* vector, const float* left, bool rest, float* out);
// Adds `factor` P Q^T; or writes it, where what is there is `fresh` memory of any content.
void add_product(
    const Matrices& m, const float* left, const float* right, float factor, float* total, bool fresh = false
);

// Factors are transposed here: a row of n numbers for each of their `rank` columns. x is rows of a matrix.
struct LowrankLoops {
    // Writes to out[i * rank + k] the product of row i of x, of n numbers, with column k.
    virtual void dots(const float* x, int64_t rows, int64_t n, const float* columns, int rank, float* out) const = 0;
    // Adds left[i * rank + k] times n numbers of row i of x, whose rows are `stride` apart, to row k of `out`.
    virtual void add_multiples(
        const float* x, int64_t rows, int64_t stride, const float* left, int64_t n, int rank, float* out
    ) const = 0;
    // Adds to `total`, or writes over `fresh` memory, the sum of left[k] times row k.
    virtual void add_product(
        const float* left, const float* rows, int64_t n, int rank, float* total, bool fresh
    ) const = 0;

protected:
    ~LowrankLoops() = default;
};

}  // namespace hvd
