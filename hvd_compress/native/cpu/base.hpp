// What every topic uses: sizes of blocks, the bits of floats, and the check of arguments.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace hvd {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian");

constexpr int64_t CHUNK = 2048;  // elements that fit into the first-level cache in any dtype
constexpr int64_t PIECE = 4096;  // elements of a partial sum: fixed, so that sums do not depend on the threads

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// The bits of a float without its sign, ordered as the magnitudes are, with NaN above all numbers.
inline uint32_t magnitude_of(float x) { return bits_of(x) & 0x7FFFFFFF; }

// Number of binary digits.
inline int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// Python sees a ValueError.
inline void require(bool sound, const char* message) {
    if (!sound) throw std::invalid_argument(message);
}

constexpr const char* NOT_ASCENDING = "indices must be ascending, distinct and in range";
constexpr const char* OUT_OF_RANGE = "indices must be in range";

}  // namespace hvd
