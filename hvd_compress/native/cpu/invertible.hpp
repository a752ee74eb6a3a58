// The invertible sketch of compressors/sketches/invertible.py.
#pragma once

#include "sketch.hpp"

namespace hvd {

// A coordinate that was put in v times has added v times its block's code to one sum of each row; `multiples` are those
// that there can be, with their blocks.
struct Invertible : Rotation {
    const int32_t* multiples;
    const int64_t* owners;
    int64_t count;  // of multiples
};

// Reads coordinates from the sums, from which they are subtracted, row after row, until none gives any more, at most
// `passes` times all rows. Returns the number of sums that are left.
int64_t recover(const Invertible& sketch, int64_t passes, uint32_t* table, Selection& found);

}  // namespace hvd
