// Whole vectors through the quantizers' inner loops. A payload is the scales of all groups and then the packed codes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace hvd {

// Consecutive runs of coordinates with scales of their own: blocks of one size, or runs that end at `ends`.
struct Groups {
    int64_t size;   // of the vector
    int64_t block;  // 0 if `ends` tells
    std::vector<int64_t> ends;

    int64_t count() const { return block ? (size + block - 1) / block : static_cast<int64_t>(ends.size()); }
    int64_t at(int64_t coordinate) const;
    int64_t end(int64_t group) const;
};

enum class Norm { none, max, l2 };  // the scale of a block, or none: the scales are given

// A quantizer of whole vectors: `scales_each` scales a group are sent, of which the second is minus the first if missing.
struct Codec {
    Quantizer quantizer;
    Groups groups;
    int scales_each;

    int64_t scales_bytes() const { return 4 * scales_each * groups.count(); }
    int64_t payload_bytes() const;
};

// Writes the payload of x (plus the residual, if not null). Scales are computed, or already in the payload if the norm
// is none. With `rest`, x becomes what the payload does not carry.
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

}  // namespace hvd
