#include "sketch.hpp"

#include <algorithm>
#include <atomic>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace hvd {
namespace {

constexpr int64_t TILE = 4096;      // columns of a row that are added to while they are in the first-level cache
constexpr int64_t GROUP = 1 << 20;  // coordinates that are read for each row while they are in the last-level cache

// Adds block b's share of the columns [first, last) of a row; `x` has the block's positions [low, high).
void add_block(
    const Hashing& h, int row, int64_t b, const float* x, int64_t low, int64_t high, int64_t first, int64_t last,
    float* sums
) {
    const int64_t shift = h.shifts[row * h.blocks() + b];
    const bool negative = h.flips[row * h.blocks() + b];
    for (const int64_t turn :
         {int64_t{0}, h.columns}) {  // position p goes to column p + shift, or that minus `columns`
        const int64_t begin = std::max(low, first - shift + turn), end = std::min(high, last - shift + turn);
        if (begin < end) {
            loops().sketch.add_signed(
                x + (begin - low), h.signs, begin, end - begin, negative, sums + (begin + shift - turn)
            );
        }
    }
}

// Writes the estimates of coordinates begin to begin + n - 1.
void estimate_range(const Hashing& h, const float* table, int64_t begin, int64_t n, float* out) {
    while (n > 0) {
        const int64_t b = begin / h.columns, position = begin % h.columns;
        int64_t run = std::min(n, h.columns - position);
        const float* rows[MOST_ROWS];
        uint32_t flips = 0;
        for (int r = 0; r < h.rows; ++r) {
            const int64_t place = h.column_of(position, h.shifts[r * h.blocks() + b]);
            run = std::min(run, h.columns - place);
            rows[r] = table + r * h.columns + place;
            flips |= static_cast<uint32_t>(h.flips[r * h.blocks() + b]) << r;
        }
        loops().sketch.median(rows, h.rows, flips, h.signs, position, run, out);
        begin += run;
        out += run;
        n -= run;
    }
}

class Estimates : public Source {
public:
    Estimates(const Hashing& hashing, const float* table) : Source(hashing.size), hashing_(hashing), table_(table) {}
    int64_t tile() const override { return CHUNK; }
    const float* at(int64_t begin, int64_t n, float* buffer) const override {
        estimate_range(hashing_, table_, begin, n, buffer);
        return buffer;
    }

private:
    const Hashing& hashing_;
    const float* table_;
};

}  // namespace

void sketch(const Hashing& h, const float* x, int64_t offset, int64_t n, float* table) {
    const int64_t all = h.rows * h.columns, last_block = (offset + n + h.columns - 1) / h.columns;
    const int64_t together = std::max<int64_t>(1, GROUP / h.columns);
    const int parts = parts_of(n);
    for (int64_t group = offset / h.columns; group < last_block; group += together) {
        for_parts(parts, [&](int part) {
            const int64_t end = begin_of(part + 1, parts, all, 64);
            for (int64_t begin = begin_of(part, parts, all, 64); begin < end;) {
                const int row = static_cast<int>(begin / h.columns);
                const int64_t start = row * h.columns, stop = std::min({end, start + h.columns, begin + TILE});
                for (int64_t b = group; b < std::min(last_block, group + together); ++b) {
                    const int64_t low = std::max(b * h.columns, offset),
                                  high = std::min((b + 1) * h.columns, offset + n);
                    add_block(
                        h, row, b, x + (low - offset), low - b * h.columns, high - b * h.columns, begin - start,
                        stop - start, table + start
                    );
                }
                begin = stop;
            }
        });
    }
}

void sketch_sparse(const Hashing& h, const Sparse& part, float* table) {
    require_ascending(part.indices, part.count, h.size);
    for_parts(h.rows, [&](int row) {
        float* sums = table + row * h.columns;
        int64_t b = 0;
        for (int64_t i = 0; i < part.count; ++i) {
            const int64_t index = part.indices[i];
            if (index - b * h.columns >= h.columns) b = index / h.columns;
            const int64_t position = index - b * h.columns, at = row * h.blocks() + b;
            const bool negative = (h.signs[position / 32] >> position % 32 & 1) != h.flips[at];
            sums[h.column_of(position, h.shifts[at])] += negative ? -part.values[i] : part.values[i];
        }
    });
}

void estimate(const Hashing& h, const float* table, float* out) {
    for_ranges(h.size, CHUNK, [&](int64_t begin, int64_t end) {
        estimate_range(h, table, begin, end - begin, out + begin);
    });
}

void estimate_at(const Hashing& h, const float* table, const int64_t* indices, int64_t count, float* out) {
    std::atomic<bool> sound{true};
    for_ranges(count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (static_cast<uint64_t>(indices[i]) >= static_cast<uint64_t>(h.size)) return sound.store(false);
            estimate_range(h, table, indices[i], 1, out + i);
        }
    });
    require(sound, OUT_OF_RANGE);
}

void select_heavy(const Hashing& h, const float* table, int64_t count, Selection& selection) {
    select_top(Estimates(h, table), count, selection);
}

}  // namespace hvd
