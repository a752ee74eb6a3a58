#include "scatter.hpp"

#include <algorithm>
#include <atomic>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace hvd {

void take(const float* x, int64_t n, const int64_t* indices, int64_t count, float* out) {
    std::atomic<bool> sound{true};
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (static_cast<uint64_t>(indices[i]) >= static_cast<uint64_t>(n)) return sound.store(false);
            out[i] = x[indices[i]];
        }
    });
    require(sound, OUT_OF_RANGE);
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

void take_out(float* x, int64_t n, const int64_t* indices, int64_t count, float* out) {
    require_ascending(indices, count, n);
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            out[i] = x[indices[i]];
            x[indices[i]] = 0.0f;
        }
    });
}

void scatter_zero(float* total, int64_t n, const int64_t* indices, int64_t count) {
    require_ascending(indices, count, n);
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) total[indices[i]] = 0.0f;
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
            loops().elementwise.stream(out + begin, chunk, size);
        }
        for (std::size_t p = 0; p < parts.size(); ++p) {
            if (last == n && next[p] != parts[p].indices + parts[p].count) sound.store(false);
        }
    });
    require(sound, NOT_ASCENDING);
}

}  // namespace hvd
