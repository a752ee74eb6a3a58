#include "lowrank.hpp"

#include <algorithm>

#include "dispatch.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace hvd {

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

// Calls f(matrix, first row, number of rows) for all rows, in parts of about equal numbers of elements.
template <class F>
void for_rows(const Matrices& m, F f) {
    const int64_t rows = m.count() * m.rows;
    const int parts = std::min<int64_t>(parts_of(rows * m.columns), std::max<int64_t>(rows, 1));
    for_parts(parts, [&](int part) {
        const int64_t end = begin_of(part + 1, parts, rows, 1);
        for (int64_t i = begin_of(part, parts, rows, 1), count; i < end; i += count) {
            const int64_t row = i % m.rows;
            count = std::min(m.rows - row, end - i);
            f(i / m.rows, row, count);
        }
    });
}

// Adds `factor` times a row of P Q^T, or writes it over `fresh` memory: the columns of Q are n numbers each.
void add_row(const float* left, const float* columns, int64_t n, int rank, float factor, float* total, bool fresh) {
    float scaled[64];
    for (int first = 0; first < rank; first += 64) {
        const int count = std::min(64, rank - first);
        for (int k = 0; k < count; ++k) scaled[k] = left[first + k] * factor;
        loops().lowrank.add_product(scaled, columns + first * n, n, count, total, fresh && first == 0);
    }
}

}  // namespace

void times(const Matrices& m, float* vector, const float* plus, const float* right, float* out) {
    const auto columns = transposed(right, m.count(), m.columns, m.rank);
    const int64_t some = std::max<int64_t>(1, 4096 / std::max<int64_t>(m.columns, 1));  // rows in the first-level cache
    for_rows(m, [&](int64_t matrix, int64_t first, int64_t rows) {
        for (int64_t row = first, count; row < first + rows; row += count) {
            count = std::min(some, first + rows - row);
            const int64_t place = m.offsets[matrix] + row * m.columns;
            float* x = vector + place;
            if (plus) loops().elementwise.add(x, plus + place, count * m.columns, x);
            loops().lowrank.dots(
                x, count, m.columns, columns.get() + matrix * m.columns * m.rank, m.rank,
                out + (matrix * m.rows + row) * m.rank
            );
        }
    });
}

void times_transposed(const Matrices& m, float* vector, const float* left, bool rest, float* out) {
    constexpr int64_t BLOCK = 512;  // columns whose sums stay in the first-level cache
    const int64_t blocks = (m.columns + BLOCK - 1) / BLOCK;
    const int parts = static_cast<int>(std::min<int64_t>(blocks * m.count(), 1 << 20));
    const auto sum = [&](int64_t task) {
        const int64_t matrix = task / blocks, begin = task % blocks * BLOCK, size = std::min(BLOCK, m.columns - begin);
        std::vector<float> sums(static_cast<std::size_t>(size * m.rank));
        float* x = vector + m.offsets[matrix] + begin;
        const float* own = left + matrix * m.rows * m.rank;
        loops().lowrank.add_multiples(x, m.rows, m.columns, own, size, m.rank, sums.data());
        for (int64_t row = 0; rest && row < m.rows; ++row) {
            add_row(own + row * m.rank, sums.data(), size, m.rank, -1.0f, x + row * m.columns, false);
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

void add_product(const Matrices& m, const float* left, const float* right, float factor, float* total, bool fresh) {
    const auto columns = transposed(right, m.count(), m.columns, m.rank);
    for_rows(m, [&](int64_t matrix, int64_t first, int64_t rows) {
        for (int64_t row = first; row < first + rows; ++row) {
            add_row(
                left + (matrix * m.rows + row) * m.rank, columns.get() + matrix * m.rank * m.columns, m.columns, m.rank,
                factor, total + m.offsets[matrix] + row * m.columns, fresh
            );
        }
    });
}

}  // namespace hvd
