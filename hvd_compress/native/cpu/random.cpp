#include "random.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace hvd {

void uniform(uint32_t first, uint32_t second, int64_t count, float* out) {
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        loops().random.uniform(first, second, begin, end - begin, out + begin);
    });
}

namespace {

constexpr int RADIX = 8;

// Sorts keys below 2^bits, least digit first; the result is in `keys`, `other` is of the same size.
void sort_range(int64_t* keys, int64_t* other, int64_t count, int bits) {
    if (count < 128) return std::sort(keys, keys + count);
    constexpr int DIGIT = 9;
    int64_t* from = keys;
    for (int shift = 0; shift < bits; shift += DIGIT) {
        int64_t starts[(1 << DIGIT) + 1] = {};
        constexpr int64_t MASK = (1 << DIGIT) - 1;
        for (int64_t i = 0; i < count; ++i) ++starts[(from[i] >> shift & MASK) + 1];
        for (int64_t d = 0; d < MASK; ++d) starts[d + 1] += starts[d];
        for (int64_t i = 0; i < count; ++i) other[starts[from[i] >> shift & MASK]++] = from[i];
        std::swap(from, other);
    }
    if (from != keys) std::copy_n(from, count, keys);
}

// Sorts non-negative keys below 2^bits: each thread divides its part by the highest digit, then each digit's are
// sorted.
void sort_keys(int64_t* keys, int64_t count, int bits) {
    Scratch<int64_t> other(count);
    const int parts = parts_of(count);
    const int shift = std::max(0, bits - RADIX);
    constexpr int DIGITS = 1 << RADIX;
    std::vector<int64_t> starts(static_cast<std::size_t>(parts) * DIGITS);
    const auto each = [&](int part, auto f) {
        int64_t* at = starts.data() + static_cast<int64_t>(part) * DIGITS;
        const int64_t end = begin_of(part + 1, parts, count, 1);
        for (int64_t i = begin_of(part, parts, count, 1); i < end; ++i) f(at[keys[i] >> shift], keys[i]);
    };
    for_parts(parts, [&](int part) { each(part, [](int64_t& number, int64_t) { ++number; }); });
    int64_t limits[DIGITS + 1], sum = 0;
    for (int digit = 0; digit < DIGITS; ++digit) {
        limits[digit] = sum;
        for (int part = 0; part < parts; ++part) {
            int64_t& start = starts[static_cast<std::size_t>(part * DIGITS + digit)];
            sum += std::exchange(start, sum);
        }
    }
    limits[DIGITS] = count;
    for_parts(parts, [&](int part) { each(part, [&](int64_t& start, int64_t key) { other[start++] = key; }); });
    for_parts(parts, [&](int part) {
        for (int digit = part; digit < DIGITS; digit += parts) {
            const int64_t begin = limits[digit], size = limits[digit + 1] - begin;
            std::copy_n(other.get() + begin, size, keys + begin);
            sort_range(keys + begin, other.get() + begin, size, shift);
        }
    });
}

}  // namespace

void distinct(uint32_t first, uint32_t second, int64_t size, int64_t count, int64_t* out) {
    require(0 <= count && count <= size, "distinct: count must be in 0 to size");
    if (!count) return;
    Feistel feistel{
        std::max(1, (bit_length(static_cast<uint64_t>(size) - 1) + 1) / 2), {}, static_cast<uint64_t>(size)
    };
    loops().random.words(first, second, 0, 6, feistel.keys);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        loops().random.permute(feistel, begin, end - begin, out + begin);
    });
    sort_keys(out, count, bit_length(static_cast<uint64_t>(size) - 1));
}

}  // namespace hvd
