#include "algorithms.hpp"

#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <utility>

namespace hvd {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> levels{&PORTABLE};
#ifdef HVD_X86
    // What has AVX2 has F16C.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("popcnt")) {
        levels.push_back(&AVX2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
            levels.push_back(&AVX512);
        }
    }
#endif
    return levels;
}

void require(bool sound, const char* message) {
    if (!sound) throw std::invalid_argument(message);
}

constexpr const char* UNSOUND =
    "the indices that came in are not those of an encoder: wrong number, order or range";
constexpr const char* NOT_ASCENDING = "indices must be ascending, distinct and in range";

}  // namespace

int parts_of(int64_t n) {
    // Several for each thread: one that is kept off its core, by a thread that spins, say, then does fewer of them.
    return threads() == 1 ? 1 : static_cast<int>(std::clamp<int64_t>(n / ENOUGH, 1, 8 * threads()));
}

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

// --- settings of the process

std::vector<std::string> simd_levels() {
    std::vector<std::string> names;
    for (const Kernels* level : available()) names.emplace_back(level->name);
    return names;
}

const char* simd() { return kernels().name; }

void set_simd(const std::string& level) {
    for (const Kernels* candidate : available()) {
        if (level == candidate->name) return chosen.store(candidate);
    }
    throw std::invalid_argument("no such level of SIMD on this processor: " + level);
}

// --- bitmaps

Positions::Positions(const Bits& bits) : bits_(bits) {
    const int parts = parts_of(bits.size);
    before_.assign(static_cast<std::size_t>(parts) + 1, 0);
    for_parts(parts, [&](int part) {
        before_[static_cast<std::size_t>(part) + 1] = kernels().count_bits(
            bits_, begin_of(part, parts, bits_.words(), 1), begin_of(part + 1, parts, bits_.words(), 1)
        );
    });
    for (int part = 0; part < parts; ++part) before_[part + 1] += before_[part];
}

void Positions::write(int64_t* out) const {
    const int parts = static_cast<int>(before_.size()) - 1;
    for_parts(parts, [&](int part) {
        kernels().positions(
            bits_, begin_of(part, parts, bits_.words(), 1), begin_of(part + 1, parts, bits_.words(), 1),
            out + before_[part]
        );
    });
}

namespace {

// Sets bit `position(i, indices[i])` of `length` zero bits for each i. Positions must ascend when the indices do.
// Throws unless the indices ascend within [0, size).
template <class F>
void set_ascending(const int64_t* indices, int64_t count, int64_t size, int64_t length, uint8_t* out, F position) {
    const int64_t bytes = packed_bytes(length, 1);
    zero(out, bytes);
    struct Edge {
        int64_t word = 0;
        uint64_t bits = 0;
    };
    const int parts = parts_of(count);
    std::vector<Edge> edges(2 * static_cast<std::size_t>(parts));
    std::atomic<bool> sound{true};
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, count, 1), end = begin_of(part + 1, parts, count, 1);
        if (begin == end) return;
        int64_t previous = begin ? indices[begin - 1] : -1;
        const int64_t first = indices[begin] > previous && indices[begin] < size ? position(begin, indices[begin]) / 64
                                                                                : -1;
        int64_t word = first;
        uint64_t bits = 0;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t index = indices[i];
            if (index <= previous || index >= size || first < 0) return sound.store(false);
            previous = index;
            const int64_t bit = position(i, index);
            if (bit / 64 != word) {
                // The words between a part's first and last one hold bits of this part alone, and are whole.
                if (word == first) {
                    edges[2 * part] = {word, bits};
                } else {
                    std::memcpy(out + 8 * word, &bits, 8);
                }
                word = bit / 64;
                bits = 0;
            }
            bits |= uint64_t{1} << bit % 64;
        }
        edges[2 * part + 1] = {word, bits};
    });
    require(sound, NOT_ASCENDING);
    for (const Edge& edge : edges) {
        const auto width = static_cast<std::size_t>(std::min<int64_t>(8, bytes - 8 * edge.word));
        uint64_t old = 0;
        if (!edge.bits) continue;
        std::memcpy(&old, out + 8 * edge.word, width);
        old |= edge.bits;
        std::memcpy(out + 8 * edge.word, &old, width);
    }
}

// --- selection by magnitude

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

// Where the `count`-th largest magnitude lies, almost surely: four standard deviations round its rank in a sample. The
// sample of a short vector is the vector, and the interval one number.
Interval estimate(const Source& x, int64_t count) {
    const int64_t n = x.size();
    const int64_t size = std::min(n, std::clamp<int64_t>(n / 256, SAMPLE / 8, SAMPLE));
    Scratch<uint32_t> sample(size);
    for_ranges(size, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t from = n / size * i + n % size * i / size, to = n / size * (i + 1) + n % size * (i + 1) / size;
            float buffer;
            sample[i] = magnitude_of(*x.at(from + scramble(static_cast<uint32_t>(i)) % (to - from), 1, &buffer));
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

// Where it lies for certain, by counting: an interval of at most `most` elements, or of one number.
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
            for_tiles(x, begin_of(part, parts, n, CHUNK), begin_of(part + 1, parts, n, CHUNK), [&](auto tile, auto, auto size) {
                for (int64_t i = 0; i < size; ++i) {
                    const uint32_t m = magnitude_of(tile[i]);
                    if (static_cast<uint64_t>(m) >> (shift + width) == prefix) ++counts[m >> shift & (bins - 1)];
                }
            });
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
bool select_within(
    const Source& x, int64_t count, Interval interval, int64_t most, int parts, Selection& selection
) {
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
            above[part] += kernels().classify(tile, size, interval.low, interval.high, words, found);
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
            kernels().select(x.at(begin, size, buffer), size, interval.low, interval.high + 1, equal);
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
    // The fewer are wanted, the narrower the interval that a sample gives.
    const int64_t most = (n / (count < n / 20 ? 80 : 40) + 4096) / parts + 1;
    if (select_within(x, count, estimate(x, count), most, parts, selection)) return;
    select_within(x, count, locate(x, count, most), most, parts, selection);
}

void select_above(const float* x, int64_t n, float threshold, Selection& selection) {
    constexpr uint32_t END = 0x80000000;  // NaN, too, is not below the threshold
    const uint32_t low = threshold >= 0 ? magnitude_of(threshold) : 0;
    for_ranges(n, 64, [&](int64_t begin, int64_t end) {
        kernels().select(x + begin, end - begin, low, END, selection.words() + begin / 64);
    });
}

void draw(const float* x, int64_t n, float scale, uint32_t first, uint32_t second, Selection& selection) {
    for_ranges(n, 64, [&](int64_t begin, int64_t end) {
        const Draws draws{first, second, static_cast<uint32_t>(begin)};
        kernels().draw(x + begin, end - begin, scale, draws, selection.words() + begin / 64);
    });
}

void take(const float* x, int64_t n, const int64_t* indices, int64_t count, float* out) {
    std::atomic<bool> sound{true};
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (static_cast<uint64_t>(indices[i]) >= static_cast<uint64_t>(n)) return sound.store(false);
            out[i] = x[indices[i]];
        }
    });
    require(sound, "indices must be in range");
}

void require_ascending(const int64_t* indices, int64_t count, int64_t size) {
    std::atomic<bool> sound{true};
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        int64_t previous = begin ? indices[begin - 1] : -1;
        bool fine = true;
        for (int64_t i = begin; i < end; ++i) {
            fine &= indices[i] > previous && indices[i] < size;
            previous = indices[i];
        }
        if (!fine) sound.store(false);
    });
    require(sound, NOT_ASCENDING);
}

void scatter_add(float* total, int64_t n, const int64_t* indices, int64_t count, const float* values) {
    require_ascending(indices, count, n);
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) total[indices[i]] += values[i];
    });
}

void scatter(const std::vector<Sparse>& parts, float factor, int64_t n, float* out) {
    std::atomic<bool> sound{true};
    for_ranges(n, CHUNK, [&](int64_t first, int64_t last) {
        std::vector<const int64_t*> next;
        for (const Sparse& part : parts) {
            next.push_back(std::lower_bound(part.indices, part.indices + part.count, first));
        }
        alignas(64) float chunk[CHUNK];
        for (int64_t begin = first; begin < last; begin += CHUNK) {
            const int64_t size = std::min(CHUNK, last - begin);
            std::fill(chunk, chunk + size, 0.0f);
            for (std::size_t p = 0; p < parts.size(); ++p) {
                const int64_t* const end = parts[p].indices + parts[p].count;
                for (; next[p] < end && *next[p] < begin + size; ++next[p]) {
                    if (*next[p] < begin) return sound.store(false);
                    chunk[*next[p] - begin] += parts[p].values[next[p] - parts[p].indices] * factor;
                }
            }
            kernels().stream(out + begin, chunk, size);
        }
        for (std::size_t p = 0; p < parts.size(); ++p) {
            if (last == n && next[p] != parts[p].indices + parts[p].count) sound.store(false);
        }
    });
    require(sound, NOT_ASCENDING);
}

// --- random numbers

void uniform(uint32_t first, uint32_t second, int64_t count, float* out) {
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        kernels().uniform(first, second, begin, end - begin, out + begin);
    });
}

namespace {

int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

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

// Sorts non-negative keys below 2^bits: each thread divides its part by the highest digit, then each digit's are sorted.
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
    Feistel feistel{std::max(1, (bit_length(static_cast<uint64_t>(size) - 1) + 1) / 2), {}, static_cast<uint64_t>(size)};
    kernels().words(first, second, 0, 6, feistel.keys);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        kernels().permute(feistel, begin, end - begin, out + begin);
    });
    sort_keys(out, count, bit_length(static_cast<uint64_t>(size) - 1));
}

// --- packing and index codes

int64_t packed_bytes(int64_t count, int bits) { return count * (bits / 8) + (count + 7) / 8 * (bits % 8); }

namespace {

void pack_part(const uint8_t* x, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest) {
    kernels().pack8(x, n, bits, planes, stride, rest);
}
void pack_part(const int32_t* x, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest) {
    kernels().pack32(x, n, bits, planes, stride, rest);
}
void pack_part(const int64_t* x, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest) {
    kernels().pack64(x, n, bits, planes, stride, rest);
}

}  // namespace

template <class T>
void pack(const T* numbers, int64_t count, int bits, uint8_t* out) {
    uint8_t* rest = out + count * (bits / 8);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        pack_part(numbers + begin, end - begin, bits, out + begin, count, rest + begin / 8 * (bits % 8));
    });
}
template void pack(const uint8_t*, int64_t, int, uint8_t*);
template void pack(const int32_t*, int64_t, int, uint8_t*);
template void pack(const int64_t*, int64_t, int, uint8_t*);

void unpack(const uint8_t* payload, int64_t count, int bits, int32_t* out) {
    const uint8_t* rest = payload + count * (bits / 8);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        kernels().unpack(payload + begin, count, rest + begin / 8 * (bits % 8), end - begin, bits, out + begin);
    });
}

IndexCode::IndexCode(int64_t size_, int64_t count_) : size(size_), count(count_), low(0), high_bits(size_), bitmap(true) {
    require(0 <= count && count <= size, "count must be in 0 to size");
    if (!count) {
        high_bits = 0;
        return;
    }
    const int bits = std::max(0, bit_length(static_cast<uint64_t>(size / count)) - 1);
    const int64_t high = count + ((size - 1) >> bits);
    if (packed_bytes(size, 1) <= packed_bytes(count, bits) + packed_bytes(high, 1)) return;
    require(bits <= 30, "indices that far apart have no code");
    low = bits;
    high_bits = high;
    bitmap = false;
}

int64_t IndexCode::bytes() const { return packed_bytes(count, low) + packed_bytes(high_bits, 1); }

void encode_bitmap(const int64_t* indices, int64_t count, int64_t size, uint8_t* out) {
    set_ascending(indices, count, size, size, out, [](int64_t, int64_t index) { return index; });
}

void encode_indices(const IndexCode& code, const int64_t* indices, uint8_t* out) {
    if (code.bitmap) return encode_bitmap(indices, code.count, code.high_bits, out);
    pack(indices, code.count, code.low, out);
    const int low = code.low;
    set_ascending(
        indices, code.count, code.size, code.high_bits, out + packed_bytes(code.count, low),
        [low](int64_t i, int64_t index) { return (index >> low) + i; }
    );
}

void decode_indices(const IndexCode& code, const uint8_t* payload, int64_t* out) {
    const uint8_t* high = payload + packed_bytes(code.count, code.low);
    const Positions positions({high, code.high_bits});
    require(positions.count() == code.count, UNSOUND);
    positions.write(out);
    if (code.bitmap) return;
    const int whole = code.low / 8, part = code.low % 8;
    const uint8_t* rest = payload + code.count * whole;
    std::atomic<bool> sound{true};
    for_ranges(code.count, CHUNK, [&](int64_t first, int64_t last) {
        int32_t low[CHUNK];
        for (int64_t begin = first; begin < last; begin += CHUNK) {
            const int64_t size = std::min(CHUNK, last - begin);
            kernels().unpack(payload + begin, code.count, rest + begin / 8 * part, size, code.low, low);
            int64_t* at = out + begin;
            for (int64_t i = 0; i < size; ++i) at[i] = ((at[i] - begin - i) << code.low) | low[i];
            bool fine = true;
            for (int64_t i = 1; i < size; ++i) fine &= at[i] > at[i - 1];
            if (!fine) sound.store(false);
        }
    });
    for (int64_t i = CHUNK; i < code.count; i += CHUNK) {
        if (out[i] <= out[i - 1]) sound.store(false);
    }
    require(sound && out[code.count - 1] < code.size, UNSOUND);
}

// --- whole vectors

void zero(void* data, int64_t bytes) {
    for_ranges(bytes, 4096, [&](int64_t begin, int64_t end) {
        std::memset(static_cast<char*>(data) + begin, 0, static_cast<std::size_t>(end - begin));
    });
}

void copy(void* to, const void* from, int64_t bytes) {
    for_ranges(bytes, 4096, [&](int64_t begin, int64_t end) {
        std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                    static_cast<std::size_t>(end - begin));
    });
}

void add(float* total, const float* x, int64_t n) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) { kernels().add(total + begin, x + begin, end - begin, total + begin); });
}

void affine(const float* x, float a, const float* y, float b, int64_t n, float* out) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        kernels().affine(x + begin, a, y + begin, b, end - begin, out + begin);
    });
}

void half_rest(float* x, const float* residual, int64_t n, uint16_t* halves) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) {
        kernels().half_rest(x + begin, residual ? residual + begin : nullptr, end - begin, halves + begin);
    });
}

void to_half(const float* x, int64_t n, uint16_t* halves) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) { kernels().to_half(x + begin, end - begin, halves + begin); });
}

void from_half(const uint16_t* halves, int64_t n, float* out) {
    for_ranges(n, CHUNK, [&](int64_t begin, int64_t end) { kernels().from_half(halves + begin, end - begin, out + begin); });
}

bool all_finite(const float* x, int64_t n) {
    constexpr uint32_t INFINITE = 0x7F800000;
    std::atomic<bool> finite{true};
    for_ranges(n, CHUNK, [&](int64_t first, int64_t last) {
        for (int64_t begin = first; begin < last && finite.load(std::memory_order_relaxed); begin += CHUNK) {
            if (kernels().largest(x + begin, nullptr, std::min(CHUNK, last - begin)) >= INFINITE) finite.store(false);
        }
    });
    return finite;
}

namespace {

// Calls reduce(group's number, piece of it) for pieces of at most PIECE elements, in any order, and then
// combine(group, first piece's number, their number).
template <class F, class G>
void for_groups(int64_t n, const int64_t* lengths, int64_t groups, F reduce, G combine) {
    struct Start {
        int64_t element, piece;
    };
    Scratch<Start> starts(groups + 1);
    Start at{0, 0};
    for (int64_t g = 0; g < groups; ++g) {
        starts[g] = at;
        require(0 <= lengths[g] && lengths[g] <= n - at.element, "the groups' lengths do not add up to the vector's");
        at.element += lengths[g];
        at.piece += (lengths[g] + PIECE - 1) / PIECE;
    }
    require(at.element == n, "the groups' lengths do not add up to the vector's");
    starts[groups] = at;
    const int parts = parts_of(n);
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, at.piece, 1), end = begin_of(part + 1, parts, at.piece, 1);
        if (begin == end) return;
        // The last group that begins at this piece or before: empty ones share their successor's piece.
        const Start* group = std::upper_bound(starts.get(), starts.get() + groups, begin,
                                              [](int64_t piece, const Start& s) { return piece < s.piece; }) - 1;
        for (int64_t piece = begin; piece < end; ++piece) {
            while (piece >= group[1].piece) ++group;
            const int64_t element = group->element + (piece - group->piece) * PIECE;
            reduce(piece, element, std::min(PIECE, group[1].element - element));
        }
    });
    for (int64_t g = 0; g < groups; ++g) combine(g, starts[g].piece, starts[g + 1].piece);
}

int64_t most_pieces(int64_t n, int64_t groups) { return n / PIECE + groups; }

}  // namespace

void group_max_abs(const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, float* out) {
    Scratch<uint32_t> pieces(most_pieces(n, groups));
    for_groups(
        n, lengths, groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            pieces[piece] = kernels().largest(x + begin, plus ? plus + begin : nullptr, size);
        },
        [&](int64_t group, int64_t first, int64_t last) {
            uint32_t largest = 0;
            for (int64_t piece = first; piece < last; ++piece) largest = std::max(largest, pieces[piece]);
            std::memcpy(out + group, &largest, 4);
        }
    );
}

void group_max_square(
    const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, float* max, double* square
) {
    Scratch<uint32_t> largest(most_pieces(n, groups));
    Scratch<double> sums(most_pieces(n, groups));
    for_groups(
        n, lengths, groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            const float* added = plus ? plus + begin : nullptr;
            largest[piece] = kernels().largest(x + begin, added, size);
            sums[piece] = kernels().squares(x + begin, added, size);
        },
        [&](int64_t group, int64_t first, int64_t last) {
            uint32_t most = 0;
            square[group] = 0;
            for (int64_t piece = first; piece < last; ++piece) {
                most = std::max(most, largest[piece]);
                square[group] += sums[piece];
            }
            std::memcpy(max + group, &most, 4);
        }
    );
}

void sum_below(const float* x, int64_t n, float bound, double* out) {
    const int64_t count = (n + PIECE - 1) / PIECE;
    Scratch<double> pieces(2 * count + 1);
    for_ranges(count, 16, [&](int64_t first, int64_t last) {
        for (int64_t piece = first; piece < last; ++piece) {
            pieces[2 * piece] = pieces[2 * piece + 1] = 0;
            kernels().sum_below(x + piece * PIECE, std::min(PIECE, n - piece * PIECE), bound, &pieces[2 * piece]);
        }
    });
    out[0] = out[1] = 0;
    for (int64_t i = 0; i < 2 * count; ++i) out[i % 2] += pieces[i];
}

void group_sides(const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, double* out) {
    Scratch<double> pieces(3 * most_pieces(n, groups));
    for_groups(
        n, lengths, groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            double* sums = pieces.get() + 3 * piece;
            std::fill(sums, sums + 3, 0.0);
            kernels().sides(x + begin, plus ? plus + begin : nullptr, size, sums);
        },
        [&](int64_t group, int64_t first, int64_t last) {
            std::fill(out + 3 * group, out + 3 * group + 3, 0.0);
            for (int64_t i = 3 * first; i < 3 * last; ++i) out[3 * group + i % 3] += pieces[i];
        }
    );
}

// --- products of low rank

namespace {

// Factors of `rows` x `rank` with each of their columns side by side.
Scratch<float> transposed(const float* factors, int64_t count, int64_t rows, int rank) {
    Scratch<float> result(count * rows * rank);
    for_ranges(count * rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* matrix = result.get() + i / rows * rows * rank;
            for (int k = 0; k < rank; ++k) matrix[k * rows + i % rows] = factors[i * rank + k];
        }
    });
    return result;
}

// Calls f(matrix, row) for all rows, in parts of about equal numbers of elements.
template <class F>
void for_rows(const Matrices& m, F f) {
    const int64_t rows = m.count() * m.rows;
    const int parts = std::min<int64_t>(parts_of(rows * m.columns), std::max<int64_t>(rows, 1));
    for_parts(parts, [&](int part) {
        for (int64_t i = begin_of(part, parts, rows, 1); i < begin_of(part + 1, parts, rows, 1); ++i) {
            f(i / m.rows, i % m.rows);
        }
    });
}

}  // namespace

void times(const Matrices& m, const float* vector, const float* right, float* out) {
    const auto columns = transposed(right, m.count(), m.columns, m.rank);
    for_rows(m, [&](int64_t matrix, int64_t row) {
        kernels().dots(
            vector + m.offsets[matrix] + row * m.columns, columns.get() + matrix * m.columns * m.rank, m.columns, m.rank,
            out + (matrix * m.rows + row) * m.rank
        );
    });
}

void times_transposed(const Matrices& m, const float* vector, const float* left, float* out) {
    constexpr int64_t BLOCK = 512;  // columns whose sums stay in the first-level cache
    const int64_t blocks = (m.columns + BLOCK - 1) / BLOCK;
    const int parts = static_cast<int>(std::min<int64_t>(blocks * m.count(), 1 << 20));
    const auto sum = [&](int64_t task) {
        const int64_t matrix = task / blocks, begin = task % blocks * BLOCK, size = std::min(BLOCK, m.columns - begin);
        std::vector<float> sums(static_cast<std::size_t>(size * m.rank));
        for (int64_t row = 0; row < m.rows; ++row) {
            kernels().add_multiples(
                vector + m.offsets[matrix] + row * m.columns + begin, left + (matrix * m.rows + row) * m.rank, size,
                m.rank, size, sums.data()
            );
        }
        for (int64_t i = 0; i < size; ++i) {
            for (int k = 0; k < m.rank; ++k) out[(matrix * m.columns + begin + i) * m.rank + k] = sums[k * size + i];
        }
    };
    if (m.count() * m.rows * m.columns < ENOUGH) {
        for (int64_t task = 0; task < blocks * m.count(); ++task) sum(task);
    } else {
        for_parts(parts, [&](int part) {
            for (int64_t task = part; task < blocks * m.count(); task += parts) sum(task);
        });
    }
}

void add_product(const Matrices& m, const float* left, const float* right, float factor, float* total) {
    const auto columns = transposed(right, m.count(), m.columns, m.rank);
    for_rows(m, [&](int64_t matrix, int64_t row) {
        float scaled[64];
        const float* own = left + (matrix * m.rows + row) * m.rank;
        for (int first = 0; first < m.rank; first += 64) {
            const int count = std::min(64, m.rank - first);
            for (int k = 0; k < count; ++k) scaled[k] = own[first + k] * factor;
            kernels().add_product(
                scaled, columns.get() + (matrix * m.rank + first) * m.columns, m.columns, count,
                total + m.offsets[matrix] + row * m.columns
            );
        }
    });
}

}  // namespace hvd
