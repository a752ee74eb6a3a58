// Random numbers as in ops/random.py: a function of a stream's two words and the index.
#pragma once

#include "base.hpp"

namespace hvd {

void uniform(uint32_t first, uint32_t second, int64_t count, float* out);
void distinct(uint32_t first, uint32_t second, int64_t size, int64_t count, int64_t* out);

// A random permutation of range(4^half): a Feistel network (see ops/random.py).
struct Feistel {
    int half;
    uint32_t keys[6];
    uint64_t size;  // results that are not below it are permuted again
};

// The random numbers of consecutive coordinates.
struct Draws {
    uint32_t first, second, index;  // of the first coordinate
};

struct RandomLoops {
    // Random words and numbers in [0, 1) of the indices begin to begin + n - 1.
    virtual void words(uint32_t first, uint32_t second, int64_t begin, int64_t n, uint32_t* out) const = 0;
    virtual void uniform(uint32_t first, uint32_t second, int64_t begin, int64_t n, float* out) const = 0;
    // 16 random bits for each of n coordinates, from that of index draws.index on; both are multiples of 32.
    virtual void noise(Draws draws, int64_t n, uint16_t* out) const = 0;
    virtual void permute(const Feistel& feistel, int64_t begin, int64_t n, int64_t* out) const = 0;

protected:
    ~RandomLoops() = default;
};

}  // namespace hvd
