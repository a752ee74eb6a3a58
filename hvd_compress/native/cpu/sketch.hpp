// The count sketch of compressors/sketches/count_sketch.py.
#pragma once

#include "scatter.hpp"
#include "select.hpp"

namespace hvd {

constexpr int MOST_ROWS = 15;

// Where coordinates go: block b of `columns` coordinates is rotated in row r by shifts[r * blocks() + b].
struct Rotation {
    int64_t size, columns;
    int rows;
    const int64_t* shifts;

    int64_t blocks() const { return (size + columns - 1) / columns; }
    // The column that a position in a block is rotated to.
    int64_t column_of(int64_t position, int64_t shift) const {
        const int64_t column = position + shift;
        return column < columns ? column : column - columns;
    }
};

// Signs: a block is negated in row r if flips[r * blocks() + b] is 1, a coordinate if the bit of its place in the block
// is set in `signs`.
struct Hashing : Rotation {
    const uint8_t* flips;
    const uint32_t* signs;
};

// Adds the coordinates offset to offset + n - 1 of a vector, x, to the table of rows * columns sums.
void sketch(const Hashing& hashing, const float* x, int64_t offset, int64_t n, float* table);
// The same of values at ascending indices below the size.
void sketch_sparse(const Hashing& hashing, const Sparse& part, float* table);

void estimate(const Hashing& hashing, const float* table, float* out);
void estimate_at(const Hashing& hashing, const float* table, const int64_t* indices, int64_t count, float* out);
// Selects the `count` coordinates of largest estimated magnitude.
void select_heavy(const Hashing& hashing, const float* table, int64_t count, Selection& selection);

struct SketchLoops {
    // Adds x to `total`, element i with the sign of bit `bit + i` of `signs`, all negated if `negative`.
    virtual void add_signed(
        const float* x, const uint32_t* signs, int64_t bit, int64_t n, bool negative, float* total
    ) const = 0;
    // Medians of `count` rows (odd, at most MOST_ROWS) with signs likewise; row r is negated if bit r of `flips` is
    // set.
    virtual void median(
        const float* const* rows, int count, uint32_t flips, const uint32_t* signs, int64_t bit, int64_t n, float* out
    ) const = 0;

protected:
    ~SketchLoops() = default;
};

}  // namespace hvd
