#include "reduce.hpp"

#include <algorithm>
#include <atomic>

#include "dispatch.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace hvd {

bool all_finite(const float* x, int64_t n) {
    constexpr uint32_t INFINITE = 0x7F800000;
    std::atomic<bool> finite{true};
    for_ranges(n, CHUNK, [&](int64_t first, int64_t last) {
        for (int64_t begin = first; begin < last && finite.load(std::memory_order_relaxed); begin += CHUNK) {
            if (loops().reduce.largest(x + begin, nullptr, std::min(CHUNK, last - begin)) >= INFINITE)
                finite.store(false);
        }
    });
    return finite;
}

namespace {

// Calls reduce(group's number, piece of it) for pieces of at most PIECE elements, in any order, and then
// combine(group, first piece's number, their number).
template <class F, class G>
void for_groups(const Groups& groups, F reduce, G combine) {
    struct Start {
        int64_t element, piece;
    };
    const int64_t count = groups.count();
    Scratch<Start> starts(count + 1);
    Start at{0, 0};
    for (int64_t g = 0; g < count; ++g) {
        starts[g] = at;
        at.piece += (groups.end(g) - at.element + PIECE - 1) / PIECE;
        at.element = groups.end(g);
    }
    starts[count] = at;
    const int parts = parts_of(groups.size);
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, at.piece, 1), end = begin_of(part + 1, parts, at.piece, 1);
        if (begin == end) return;
        // The last group that begins at this piece or before: empty ones share their successor's piece.
        const Start* group =
            std::upper_bound(
                starts.get(), starts.get() + count, begin, [](int64_t piece, const Start& s) { return piece < s.piece; }
            ) -
            1;
        for (int64_t piece = begin; piece < end; ++piece) {
            while (piece >= group[1].piece) ++group;
            const int64_t element = group->element + (piece - group->piece) * PIECE;
            reduce(piece, element, std::min(PIECE, group[1].element - element));
        }
    });
    for (int64_t g = 0; g < count; ++g) combine(g, starts[g].piece, starts[g + 1].piece);
}

int64_t most_pieces(const Groups& groups) { return groups.size / PIECE + groups.count(); }

}  // namespace

void group_max_abs(const float* x, const float* plus, const Groups& groups, float* out) {
    Scratch<uint32_t> pieces(most_pieces(groups));
    for_groups(
        groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            pieces[piece] = loops().reduce.largest(x + begin, plus ? plus + begin : nullptr, size);
        },
        [&](int64_t group, int64_t first, int64_t last) {
            uint32_t largest = 0;
            for (int64_t piece = first; piece < last; ++piece) largest = std::max(largest, pieces[piece]);
            std::memcpy(out + group, &largest, 4);
        }
    );
}

void group_max_square(const float* x, const float* plus, const Groups& groups, float* max, double* square) {
    Scratch<uint32_t> largest(most_pieces(groups));
    Scratch<double> sums(most_pieces(groups));
    for_groups(
        groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            const float* added = plus ? plus + begin : nullptr;
            largest[piece] = loops().reduce.largest(x + begin, added, size);
            sums[piece] = loops().reduce.squares(x + begin, added, size);
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
            loops().reduce.sum_below(x + piece * PIECE, std::min(PIECE, n - piece * PIECE), bound, &pieces[2 * piece]);
        }
    });
    out[0] = out[1] = 0;
    for (int64_t i = 0; i < 2 * count; ++i) out[i % 2] += pieces[i];
}

void group_sides(const float* x, const float* plus, const Groups& groups, double* out) {
    Scratch<double> pieces(3 * most_pieces(groups));
    for_groups(
        groups,
        [&](int64_t piece, int64_t begin, int64_t size) {
            double* sums = pieces.get() + 3 * piece;
            std::fill(sums, sums + 3, 0.0);
            loops().reduce.sides(x + begin, plus ? plus + begin : nullptr, size, sums);
        },
        [&](int64_t group, int64_t first, int64_t last) {
            std::fill(out + 3 * group, out + 3 * group + 3, 0.0);
            for (int64_t i = 3 * first; i < 3 * last; ++i) out[3 * group + i % 3] += pieces[i];
        }
    );
}

}  // namespace hvd
