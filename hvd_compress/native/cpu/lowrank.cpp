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

}  // namespace

void times(const Matrices& m, const float* vector, const float* right, float* out) {
    const auto columns = transposed(right, m.count(), m.columns, m.rank);
    for_rows(m, [&](int64_t matrix, int64_t row, int64_t count) {
        loops().lowrank.dots(
            vector + m.offsets[matrix] + row * m.columns, count, m.columns, columns.get() + matrix * m.columns * m.rank,
            m.rank, out + (matrix * m.rows + row) * m.rank
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
        loops().lowrank.add_multiples(
            vector + m.offsets[matrix] + begin, m.rows, m.columns, left + matrix * m.rows * m.rank, size, m.rank,
            sums.data()
        );
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
    for_rows(m, [&](int64_t matrix, int64_t begin, int64_t rows) {
        float scaled[64];
        for (int64_t row = begin; row < begin + rows; ++row) {
            const float* own = left + (matrix * m.rows + row) * m.rank;
            for (int first = 0; first < m.rank; first += 64) {
                const int count = std::min(64, m.rank - first);
                for (int k = 0; k < count; ++k) scaled[k] = own[first + k] * factor;
                loops().lowrank.add_product(
                    scaled, columns.get() + (matrix * m.rank + first) * m.columns, m.columns, count,
                    total + m.offsets[matrix] + row * m.columns, fresh && first == 0
                );
            }
        }
    });
}

}  // namespace hvd
