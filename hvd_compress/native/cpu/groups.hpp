// Consecutive groups of a vector's coordinates.
#pragma once

#include <algorithm>
#include <vector>

#include "base.hpp"

namespace hvd {

// Blocks of one size, of which the last may be shorter, or groups that end at `ends`.
struct Groups {
    int64_t size;   // of the vector
    int64_t block;  // 0 if `ends` is used
    std::vector<int64_t> ends;

    int64_t count() const { return block ? (size + block - 1) / block : static_cast<int64_t>(ends.size()); }
    int64_t end(int64_t group) const { return block ? std::min(size, (group + 1) * block) : ends[group]; }
    // The group that a coordinate is in.
    int64_t at(int64_t coordinate) const {
        if (block) return coordinate / block;
        return std::upper_bound(ends.begin(), ends.end(), coordinate) - ends.begin();
    }
};

}  // namespace hvd
