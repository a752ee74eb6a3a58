// The code of ascending indices, as in compressors/indices.py.
#pragma once

#include "base.hpp"

namespace hvd {

// The code of `count` indices below `size`.
struct IndexCode {
    IndexCode(int64_t size, int64_t count);
    int64_t size, count;
    int low;            // low bits of each index, which are packed
    int64_t high_bits;  // length of the bitmap of the high parts
    bool bitmap;        // the code is one bitmap of all coordinates (low = 0)
    int64_t bytes() const;
};

void encode_indices(const IndexCode& code, const int64_t* indices, uint8_t* out);
void decode_indices(const IndexCode& code, const uint8_t* payload, int64_t* out);

}  // namespace hvd
