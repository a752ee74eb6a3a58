#include "select.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "dispatch.hpp"

namespace hvd {
namespace {

struct Interval {
    uint32_t low, high;  // both included
};

constexpr int64_t SAMPLE = 1 << 15;

// Calls f(elements, number of the first, how many) for the tiles of [begin, end).
template <class F>
void for_tiles(const Source& x, int64_t begin, int64_t end, F f) {
    float buffer[CHUNK];
    for (int64_t size; begin < end; begin += size) {
        size = std::min(x.tile(), end - begin);
        f(x.at(begin, size, buffer), begin, size);
    }
}

uint32_t scramble(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352D;
    x = (x ^ x >> 15) * 0x846CA68B;
    return x ^ x >> 16;
}

// How many elements are looked at first: a short vector's sample would cost more than what a narrow interval saves.
int64_t sample_size(int64_t n) {
    return std::min(n, std::clamp<int64_t>(std::max(n / 256, std::min(n / 64, SAMPLE / 8)), SAMPLE / 64, SAMPLE));
}

// An interval that almost surely holds the `count`-th largest magnitude: four standard deviations around its rank in a
// sample, of one element in each of as many stretches. A vector that is its own sample gives the number itself.
Interval estimate(const Source& x, int64_t count) {
    const int64_t n = x.size(), size = sample_size(n);
    Scratch<uint32_t> sample(size);
    for_ranges(size, 16, [&](int64_t begin, int64_t end) {
        const double stretch = static_cast<double>(n) / static_cast<double>(size);
        auto from = static_cast<int64_t>(stretch * static_cast<double>(begin));
        for (int64_t i = begin; i < end; ++i) {
            const int64_t to = std::min(n, static_cast<int64_t>(stretch * static_cast<double>(i + 1)));
            const auto random = static_cast<int64_t>(scramble(static_cast<uint32_t>(i)));
            float buffer;
            sample[i] = magnitude_of(*x.at(from + (random * (to - from) >> 32), 1, &buffer));
            from = to;
        }
    });
    const double rank = static_cast<double>(count) * static_cast<double>(size) / static_cast<double>(n);
    const double margin = size == n ? 0 : 4 * std::sqrt(rank * (1 - rank / static_cast<double>(size))) + 4;
    const auto low_rank = static_cast<int64_t>(rank + margin), high_rank = static_cast<int64_t>(rank - margin);
    Interval found{0, 0x7FFFFFFF};
    uint32_t* end = sample.get() + size;
    if (low_rank <= size) {
        uint32_t* low = sample.get() + low_rank - 1;
        std::nth_element(sample.get(), low, end, std::greater<>());
        found.low = *low;
        end = low + 1;
    }
    if (rank - margin >= 1) {
        uint32_t* high = sample.get() + high_rank - 1;
        std::nth_element(sample.get(), high, end, std::greater<>());
        found.high = *high;
    }
    return found;
}

// An interval that certainly holds it, by counting: of at most `most` elements, or of one number.
Interval locate(const Source& x, int64_t count, int64_t most) {
    const int64_t n = x.size();
    constexpr int WIDTHS[] = {11, 10, 10};
    uint32_t prefix = 0;
    int shift = 31;
    int64_t wanted = count;  // rank within the prefix
    for (const int width : WIDTHS) {
        const uint32_t bins = 1u << width;
        shift -= width;
        const int parts = parts_of(n);
        Scratch<int64_t> histogram(static_cast<int64_t>(bins) * parts);
        std::fill_n(histogram.get(), static_cast<int64_t>(bins) * parts, 0);
        for_parts(parts, [&](int part) {
            int64_t* counts = histogram.get() + static_cast<int64_t>(bins) * part;
            for_tiles(
                x, begin_of(part, parts, n, CHUNK), begin_of(part + 1, parts, n, CHUNK),
                [&](auto tile, auto, auto size) {
                    for (int64_t i = 0; i < size; ++i) {
                        const uint32_t m = magnitude_of(tile[i]);
                        if (static_cast<uint64_t>(m) >> (shift + width) == prefix) ++counts[m >> shift & (bins - 1)];
                    }
                }
            );
        });
        uint32_t bin = bins;
        int64_t inside = 0;
        for (int64_t above = 0; above < wanted;) {
            inside = 0;
            --bin;
            for (int part = 0; part < parts; ++part) inside += histogram[static_cast<int64_t>(bins) * part + bin];
            above += inside;
            if (above >= wanted) {
                wanted -= above - inside;
                break;
            }
        }
        prefix = prefix << width | bin;
        if (inside <= most) break;
    }
    return {prefix << shift, static_cast<uint32_t>((static_cast<uint64_t>(prefix) + 1) << shift) - 1};
}

// The `rank`-th largest (1, 2, ...) of numbers in an interval, and how many are above it.
struct Ranked {
    uint32_t value;
    int64_t above;
};

Ranked ranked(const std::vector<Between>& between, Interval interval, int64_t rank) {
    constexpr int BINS = 4096;
    int shift = 0;
    while ((interval.high - interval.low) >> shift >= BINS) ++shift;
    std::vector<int64_t> counts(BINS);
    for (const Between& part : between) {
        for (int64_t i = 0; i < part.count; ++i) ++counts[(part.magnitude[i] - interval.low) >> shift];
    }
    int64_t above = 0;
    uint32_t bin = BINS - 1;
    for (; above + counts[bin] < rank; --bin) above += counts[bin];
    std::vector<uint32_t> inside;
    for (const Between& part : between) {
        for (int64_t i = 0; i < part.count; ++i) {
            if ((part.magnitude[i] - interval.low) >> shift == bin) inside.push_back(part.magnitude[i]);
        }
    }
    const auto nth = inside.begin() + (rank - above - 1);
    std::nth_element(inside.begin(), nth, inside.end(), std::greater<>());
    return {*nth, above + std::count_if(inside.begin(), nth, [&](uint32_t m) { return m > *nth; })};
}

// Selects all above the interval, and within it the largest ones and, of those equal, the first. Returns false if the
// interval does not hold the last of `count`, or holds more than `most` different elements in a part.
bool select_within(const Source& x, int64_t count, Interval interval, int64_t most, int parts, Selection& selection) {
    const int64_t n = x.size();
    const bool single = interval.low == interval.high;
    const int64_t capacity = single ? 0 : most;
    Scratch<uint32_t> offsets(capacity * parts), magnitudes(capacity * parts);
    std::vector<Between> between(static_cast<std::size_t>(parts));
    std::vector<int64_t> above(static_cast<std::size_t>(parts));
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, n, 64), end = begin_of(part + 1, parts, n, 64);
        Between found{offsets.get() + capacity * part, magnitudes.get() + capacity * part, 0, capacity};
        for_tiles(x, begin, end, [&](const float* tile, int64_t at, int64_t size) {
            const int64_t before = found.count;
            uint64_t* words = selection.words() + at / 64;
            above[part] += loops().select.classify(tile, size, interval.low, interval.high, words, found);
            for (int64_t i = before; i < std::min(found.count, capacity); ++i) {
                found.offset[i] += static_cast<uint32_t>(at - begin);
            }
        });
        between[part] = found;
    });
    int64_t wanted = count, inside = 0;
    bool fits = true;
    for (int part = 0; part < parts; ++part) {
        wanted -= above[part];
        inside += between[part].count;
        fits &= single || between[part].count <= capacity;
    }
    if (!fits || wanted < 0 || wanted > inside) return false;
    if (!wanted) return true;
    if (single) {
        uint64_t equal[CHUNK / 64];
        float buffer[CHUNK];
        for (int64_t begin = 0; wanted; begin += CHUNK) {
            const int64_t size = std::min(CHUNK, n - begin);
            loops().select.mark(x.at(begin, size, buffer), size, interval.low, interval.high + 1, equal);
            for (int64_t w = 0; w < (size + 63) / 64; ++w) {
                uint64_t mask = equal[w];
                while (__builtin_popcountll(mask) > wanted) mask &= ~(uint64_t{1} << (63 - __builtin_clzll(mask)));
                wanted -= __builtin_popcountll(mask);
                selection.words()[begin / 64 + w] |= mask;
            }
        }
        return true;
    }
    const Ranked last = ranked(between, interval, wanted);
    int64_t equal = wanted - last.above;
    for (int part = 0; part < parts; ++part) {
        uint64_t* words = selection.words() + begin_of(part, parts, n, 64) / 64;
        for (int64_t i = 0; i < between[part].count; ++i) {
            const uint32_t m = between[part].magnitude[i], at = between[part].offset[i];
            const bool chosen_too = m > last.value || (m == last.value && equal-- > 0);
            words[at / 64] |= static_cast<uint64_t>(chosen_too) << at % 64;
        }
    }
    return true;
}

}  // namespace

void select_top(const Source& x, int64_t count, Selection& selection) {
    const int64_t n = x.size();
    if (count == 0 || count == n) {
        const int fill = count ? 0xFF : 0;
        std::memset(selection.words(), fill, static_cast<std::size_t>((n + 63) / 64) * 8);
        return;
    }
    const int parts = std::max(parts_of(n), static_cast<int>(n >> 31) + 1);  // offsets in a part are of 32 bits
    // A sample gives a narrower interval for fewer elements.
    const int64_t most = (n / (count < n / 20 ? 80 : 40) + 4096) / parts + 1;
    if (select_within(x, count, estimate(x, count), most, parts, selection)) return;
    select_within(x, count, locate(x, count, most), most, parts, selection);
}

void select_above(const float* x, int64_t n, float threshold, Selection& selection) {
    constexpr uint32_t END = 0x80000000;  // NaN, too, is not below the threshold
    const uint32_t low = threshold >= 0 ? magnitude_of(threshold) : 0;
    for_ranges(n, 64, [&](int64_t begin, int64_t end) {
        loops().select.mark(x + begin, end - begin, low, END, selection.words() + begin / 64);
    });
}

void draw(const float* x, int64_t n, float scale, uint32_t first, uint32_t second, Selection& selection) {
    for_ranges(n, 64, [&](int64_t begin, int64_t end) {
        const Draws draws{first, second, static_cast<uint32_t>(begin)};
        loops().select.draw(x + begin, end - begin, scale, draws, selection.words() + begin / 64);
    });
}

}  // namespace hvd
