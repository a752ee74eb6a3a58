#include "quantize.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dispatch.hpp"
#include "pack.hpp"
#include "parallel.hpp"

namespace hvd {

const KindTraits& traits_of(const std::string& name) {
    std::string names;
    for (const KindTraits& traits : KINDS) {
        if (name == traits.name) return traits;
        names += (names.empty() ? "" : ", ") + std::string(traits.name);
    }
    throw std::invalid_argument("a code must be of one of the kinds " + names);
}

int64_t Codec::payload_bytes() const { return scales_bytes() + packed_bytes(groups.size, quantizer.bits); }

namespace {

// Coordinates that are coded together: they stay in the first-level cache, fill whole bytes, and no block crosses them.
int64_t chunk_of(const Groups& groups) {
    const int64_t unit = groups.block ? std::lcm(groups.block, int64_t{8}) : 8;
    return std::min((CHUNK + unit - 1) / unit * unit, (groups.size + 7) / 8 * 8);
}

// Prefetches the next chunk, so that memory is not idle while this one is coded.
void prefetch(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(x + i);
}

// Calls f(group, begin, end) for the runs of one group each in [begin, end).
template <class F>
void for_runs(const Groups& groups, int64_t begin, int64_t end, F f) {
    for (int64_t group = groups.at(begin); begin < end; ++group) {
        const int64_t until = std::min(end, groups.end(group));
        if (begin < until) f(group, begin, until);
        begin = std::max(begin, until);
    }
}

struct Scales {
    float values[2];
    Scales(const Codec& codec, const uint8_t* payload, int64_t group) : values{1, -1} {
        if (codec.scales_each) {
            const auto bytes = static_cast<std::size_t>(4 * codec.scales_each);
            std::memcpy(values, payload + bytes * static_cast<std::size_t>(group), bytes);
            if (codec.scales_each == 1) values[1] = -values[0];
        }
    }
};

float norm_of(Norm norm, const float* x, int64_t n) {
    if (norm == Norm::max) {
        return float_of(loops().reduce.largest(x, nullptr, n));
    }
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        total += loops().reduce.squares(x + begin, nullptr, std::min(PIECE, n - begin));
    }
    return static_cast<float>(std::sqrt(total));
}

// Where the codes of a chunk lie in a payload: planes of whole bytes, then the remaining bits, packed.
struct Places {
    uint8_t *planes, *rest;
    Places(const Codec& codec, const uint8_t* payload, int64_t begin) {
        const int bits = codec.quantizer.bits;
        uint8_t* codes = const_cast<uint8_t*>(payload) + codec.scales_bytes();
        planes = codes + begin;
        rest = codes + bits / 8 * codec.groups.size + begin / 8 * (bits % 8);
    }
};

template <class T>
void encode(
    const Codec& codec, Norm norm, float* x, const float* residual, bool rest, uint32_t first, uint32_t second,
    uint8_t* payload
) {
    const int64_t chunk = chunk_of(codec.groups), n = codec.groups.size;
    for_ranges(n, chunk, [&](int64_t from, int64_t to) {
        std::vector<T> codes(static_cast<std::size_t>(chunk));
        const bool random = traits_of(codec.quantizer.kind).random;
        std::vector<uint16_t> noise(static_cast<std::size_t>(chunk + 64));
        for (int64_t begin = from; begin < to; begin += chunk) {
            const int64_t end = std::min(to, begin + chunk), aligned = begin / 32 * 32;
            // The loop of the dynamic kind is slow, and prefetches for itself.
            if (codec.quantizer.kind != Kind::dynamic) prefetch(x + end, std::min(to - end, chunk));
            if (residual) prefetch(residual + end, std::min(to - end, chunk));
            if (random) {
                const Draws draws{first, second, static_cast<uint32_t>(aligned)};
                loops().random.noise(draws, (end - aligned + 31) / 32 * 32, noise.data());
            }
            if (residual && norm != Norm::none)
                loops().elementwise.add(x + begin, residual + begin, end - begin, x + begin);
            for_runs(codec.groups, begin, end, [&](int64_t group, int64_t start, int64_t stop) {
                if (norm != Norm::none) {
                    const float scale = norm_of(norm, x + start, stop - start);
                    std::memcpy(payload + 4 * group, &scale, 4);
                }
                const Scales scales(codec, payload, group);
                const uint16_t* bits = &noise[static_cast<std::size_t>(start - aligned)];
                const float* added = residual && norm == Norm::none ? residual + start : nullptr;
                loops().quantize.encode(
                    codec.quantizer, scales.values, x + start, added, stop - start, rest, bits, &codes[start - begin]
                );
            });
            const Places places(codec, payload, begin);
            loops().pack.pack(codes.data(), end - begin, codec.quantizer.bits, places.planes, n, places.rest);
        }
    });
}

template <class T>
void decode(
    const Codec& codec, const std::vector<const uint8_t*>& payloads, float factor, bool add, bool vote, float* total
) {
    const int64_t chunk = chunk_of(codec.groups), n = codec.groups.size;
    for_ranges(n, chunk, [&](int64_t from, int64_t to) {
        std::vector<T> codes(static_cast<std::size_t>(chunk));
        std::vector<float> fresh(add ? 0 : static_cast<std::size_t>(chunk));
        for (int64_t begin = from; begin < to; begin += chunk) {
            const int64_t end = std::min(to, begin + chunk);
            float* sum = add ? total + begin : fresh.data();
            bool begun = add;
            for (const uint8_t* payload : payloads) {
                const Places places(codec, payload, begin);
                loops().pack.unpack(places.planes, n, places.rest, end - begin, codec.quantizer.bits, codes.data());
                for_runs(codec.groups, begin, end, [&](int64_t group, int64_t start, int64_t stop) {
                    const Scales scales(codec, payload, group);
                    const T* coded = &codes[start - begin];
                    loops().quantize.decode(
                        codec.quantizer, scales.values, coded, stop - start, factor, begun, sum + start - begin
                    );
                });
                begun = true;
            }
            if (vote) loops().elementwise.to_sign(sum, end - begin);
            if (!add) loops().elementwise.stream(total + begin, sum, end - begin);
        }
    });
}

}  // namespace

void quantize(
    const Codec& codec, Norm norm, float* x, const float* residual, bool rest, uint32_t first, uint32_t second,
    uint8_t* payload
) {
    if (codec.quantizer.bits <= 8) {
        encode<uint8_t>(codec, norm, x, residual, rest, first, second, payload);
    } else {
        encode<uint16_t>(codec, norm, x, residual, rest, first, second, payload);
    }
}

void dequantize(
    const Codec& codec, const std::vector<const uint8_t*>& payloads, float factor, bool add, bool vote, float* total
) {
    if (codec.quantizer.bits <= 8) {
        decode<uint8_t>(codec, payloads, factor, add, vote, total);
    } else {
        decode<uint16_t>(codec, payloads, factor, add, vote, total);
    }
}

void signs(const Groups& groups, const float* x, uint8_t* bits, double* sides) {
    const Quantizer sign{Kind::sign, 1, 1, 0, 0};
    const float either[2] = {1, -1};
    const int64_t chunks = (groups.size + CHUNK - 1) / CHUNK;
    // A sum for each run of a group in a chunk: run number chunk + group, since each boundary begins one more.
    std::vector<double> sums(static_cast<std::size_t>(3 * (chunks + groups.count())));
    for_ranges(groups.size, CHUNK, [&](int64_t from, int64_t to) {
        uint8_t codes[CHUNK];
        const uint16_t noise[CHUNK] = {};
        for (int64_t begin = from; begin < to; begin += CHUNK) {
            const int64_t end = std::min(to, begin + CHUNK);
            prefetch(x + end, std::min(to - end, CHUNK));
            float* part = const_cast<float*>(x) + begin;  // not changed without a rest
            loops().quantize.encode(sign, either, part, nullptr, end - begin, false, noise, codes);
            loops().pack.pack(codes, end - begin, 1, nullptr, 0, bits + begin / 8);
            for_runs(groups, begin, end, [&](int64_t group, int64_t start, int64_t stop) {
                loops().reduce.sides(x + start, nullptr, stop - start, &sums[3 * (begin / CHUNK + group)]);
            });
        }
    });
    int64_t begin = 0;
    for (int64_t group = 0; group < groups.count(); ++group) {
        double* total = sides + 3 * group;
        std::fill(total, total + 3, 0.0);
        const int64_t end = groups.end(group);
        for (int64_t chunk = begin / CHUNK; chunk * CHUNK < end && begin < end; ++chunk) {
            for (int i = 0; i < 3; ++i) total[i] += sums[3 * (chunk + group) + i];
        }
        begin = end;
    }
}

}  // namespace hvd
