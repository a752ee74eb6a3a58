// The invertible sketch of invertible.py, on plain pointers.
#pragma once

#include <cstdint>

#include "algorithms.hpp"

namespace hvd {

// Block b of `columns` coordinates is rotated in row r by shifts[r * blocks() + b]. A coordinate that was put in v times has
// added v times its block's code to one sum of each row; `multiples` are those that there can be, with their blocks.
struct Invertible {
    int64_t size, columns;
    int rows;
    const int64_t* shifts;
    const int32_t* multiples;
    const int64_t* owners;
    int64_t count;  // of multiples

    int64_t blocks() const { return (size + columns - 1) / columns; }
};

// Reads coordinates from the sums, from which they are subtracted, row after row, until none gives any more, at most `passes`
// times all rows. Returns the number of sums that are left.
int64_t recover(const Invertible& sketch, int64_t passes, uint32_t* table, Selection& found);

}  // namespace hvd
