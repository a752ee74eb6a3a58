// The invertible sketch of compressors/sketches/invertible.py.
#pragma once

#include "sketch.hpp"

namespace hvd {

// A coordinate that v workers put in has added v times its block's code to one sum in each row. `multiples` are the
// possible values of v times a code, `owners` their blocks.
struct Invertible : Rotation {
    const int32_t* multiples;
    const int64_t* owners;
    int64_t count;  // of multiples
};

// Peels the table: reads the coordinates that are alone in a sum and subtracts them from all rows, row after row, until
// none is left to read, or `passes` times through all rows. Returns the number of sums that are not zero in the end.
int64_t recover(const Invertible& sketch, int64_t passes, uint32_t* table, Selection& found);

}  // namespace hvd
