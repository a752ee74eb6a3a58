// Reductions: of a whole vector, and of consecutive groups of its coordinates.
#pragma once

#include "groups.hpp"

namespace hvd {

bool all_finite(const float* x, int64_t n);
// The sum of the magnitudes below the bound to out[0], the number of the others to out[1].
void sum_below(const float* x, int64_t n, float bound, double* out);

// Of the groups of x, or of x + plus if it is not null:
void group_max_abs(const float* x, const float* plus, const Groups& groups, float* out);
void group_max_square(const float* x, const float* plus, const Groups& groups, float* max, double* square);
void group_sides(const float* x, const float* plus, const Groups& groups, double* out);

struct ReduceLoops {
    // Of x, or of x + plus if it is not null; n <= PIECE for the sums.
    virtual uint32_t largest(const float* x, const float* plus, int64_t n) const = 0;  // magnitude, as bits
    virtual double squares(const float* x, const float* plus, int64_t n) const = 0;    // their sum
    // Adds to out[0] the sum of what is at least zero, to out[1] that of all else, to out[2] the number of the former.
    virtual void sides(const float* x, const float* plus, int64_t n, double* out) const = 0;
    // Adds to out[0] the sum of the magnitudes below the bound, and to out[1] the number of the others; n <= PIECE.
    virtual void sum_below(const float* x, int64_t n, float bound, double* out) const = 0;

protected:
    ~ReduceLoops() = default;
};

}  // namespace hvd
