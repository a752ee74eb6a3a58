// Values at indices.
#pragma once

#include <vector>

#include "base.hpp"

namespace hvd {

void take(const float* x, int64_t n, const int64_t* indices, int64_t count, float* out);
void take_out(float* x, int64_t n, const int64_t* indices, int64_t count, float* out);  // sets them to zero in x
void require_ascending(const int64_t* indices, int64_t count, int64_t size);            // throws std::invalid_argument
void scatter_add(float* total, int64_t n, const int64_t* indices, int64_t count, const float* values);
void scatter_zero(float* total, int64_t n, const int64_t* indices, int64_t count);

// Ascending distinct indices and a value for each.
struct Sparse {
    const int64_t* indices;
    const float* values;
    int64_t count;
};

void scatter(const std::vector<Sparse>& parts, float factor, int64_t n, float* out);  // all else is zero

}  // namespace hvd
