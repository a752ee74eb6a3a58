#include "elementwise.hpp"

#include "dispatch.hpp"
#include "parallel.hpp"

namespace hvd {

void zero(void* data, int64_t bytes) {
    for_ranges(bytes, 4096, [&](int64_t begin, int64_t end) {
        std::memset(static_cast<char*>(data) + begin, 0, static_cast<std::size_t>(end - begin));
    });
}

void copy(void* to, const void* from, int64_t bytes) {
    for_ranges(bytes, 4096, [&](int64_t begin, int64_t end) {
        std::memcpy(
            static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
            static_cast<std::size_t>(end - begin)
        );
    });
}

void add(float* total, const float* x, int64_t n) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.add(total + begin, x + begin, end - begin, total + begin);
    });
}

void affine(const float* x, float a, const float* y, float b, int64_t n, float* out) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.affine(x + begin, a, y + begin, b, end - begin, out + begin);
    });
}

void accumulate(const float* u, float momentum, float* g, const float* v, bool nesterov, int64_t n, float* out) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.accumulate(u + begin, momentum, g + begin, v + begin, nesterov, end - begin, out + begin);
    });
}

void half_rest(float* x, const float* residual, int64_t n, uint16_t* halves) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.half_rest(x + begin, residual ? residual + begin : nullptr, end - begin, halves + begin);
    });
}

void to_half(const float* x, int64_t n, uint16_t* halves) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.to_half(x + begin, end - begin, halves + begin);
    });
}

void from_half(const uint16_t* halves, int64_t n, float* out) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        loops().elementwise.from_half(halves + begin, end - begin, out + begin);
    });
}

}  // namespace hvd
