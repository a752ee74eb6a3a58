// Quantizers: whole vectors as codes of a few bits, with scales for each group of coordinates. A payload is the scales
// of all groups and then the packed codes.
#pragma once

#include <string>
#include <vector>

#include "groups.hpp"

namespace hvd {

// How a coordinate becomes a code and a code a value; compressors/quantize.py and sign.py have the formulas.
enum class Kind { levels, natural, dynamic, bfloat, sign };

struct KindTraits {
    Kind kind;
    const char* name;
    int least_bits, most_bits;
    bool random;  // codes are rounded at random
};

constexpr KindTraits KINDS[] = {
    {Kind::levels, "levels", 1, 12, true},   {Kind::natural, "natural", 9, 9, true},
    {Kind::dynamic, "dynamic", 8, 8, false}, {Kind::bfloat, "bfloat", 16, 16, false},
    {Kind::sign, "sign", 1, 1, false},
};

// Throws std::invalid_argument, which names the kinds that there are, for another name.
const KindTraits& traits_of(const std::string& name);

constexpr const KindTraits& traits_of(Kind kind) {
    for (const KindTraits& traits : KINDS) {
        if (traits.kind == kind) return traits;
    }
    return KINDS[0];  // never reached: every kind has a row
}

struct Quantizer {
    Kind kind;
    int bits;
    float numerator;  // of levels: the coordinate is multiplied by numerator / scale
    int low, high;    // of levels: the least and the largest
};

enum class Norm { none, max, l2 };  // how a block's scale is computed; none: scales are given

// A quantizer of whole vectors. `scales_each` scales are sent for each group; of one, the second is its negative.
struct Codec {
    Quantizer quantizer;
    Groups groups;
    int scales_each;

    int64_t scales_bytes() const { return 4 * scales_each * groups.count(); }
    int64_t payload_bytes() const;
};

// Writes the payload of x (plus the residual, if not null). Scales are computed, or already in the payload if the norm
// is none. With `rest`, x becomes the quantization error.
void quantize(
    const Codec& codec, Norm norm, float* x, const float* residual, bool rest, uint32_t first, uint32_t second,
    uint8_t* payload
);

// Sets `total` to the sum of factor times each payload's values, or adds it; with `vote`, to the sign of that sum.
void dequantize(
    const Codec& codec, const std::vector<const uint8_t*>& payloads, float factor, bool add, bool vote, float* total
);

// Packs the signs of x, and writes three numbers a group: the sum of what is at least zero, of all else, and the number
// of the former.
void signs(const Groups& groups, const float* x, uint8_t* bits, double* sides);

// The codes of one group, which are uint8_t if they have at most 8 bits and uint16_t otherwise. A group has up to two
// scales.
struct QuantizeLoops {
    // Codes of n coordinates, rounded by 16 random bits each; with `rest`, x becomes x (plus the residual, if it is not
    // null) minus their values.
    virtual void encode(
        const Quantizer& q, const float* scales, float* x, const float* residual, int64_t n, bool rest,
        const uint16_t* noise, uint8_t* codes
    ) const = 0;
    virtual void encode(
        const Quantizer& q, const float* scales, float* x, const float* residual, int64_t n, bool rest,
        const uint16_t* noise, uint16_t* codes
    ) const = 0;
    // Sets `total` to factor times the values of codes, or adds them to it.
    virtual void decode(
        const Quantizer& q, const float* scales, const uint8_t* codes, int64_t n, float factor, bool add, float* total
    ) const = 0;
    virtual void decode(
        const Quantizer& q, const float* scales, const uint16_t* codes, int64_t n, float factor, bool add, float* total
    ) const = 0;

protected:
    ~QuantizeLoops() = default;
};

}  // namespace hvd
