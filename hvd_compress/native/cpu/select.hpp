// Selection of coordinates by magnitude, and at random.
#pragma once

#include "bitmap.hpp"
#include "random.hpp"

namespace hvd {

// Numbers to select from: a vector, or numbers that are computed piece by piece when they are asked for.
class Source {
public:
    explicit Source(int64_t size) : size_(size) {}
    virtual ~Source() = default;
    int64_t size() const { return size_; }
    virtual int64_t tile() const = 0;  // most elements to ask for at once: CHUNK where a buffer is used
    // Returns elements begin to begin + n - 1, in place or in the buffer, which holds CHUNK.
    virtual const float* at(int64_t begin, int64_t n, float* buffer) const = 0;

private:
    int64_t size_;
};

class Vector : public Source {
public:
    Vector(const float* x, int64_t n) : Source(n), x_(x) {}
    int64_t tile() const override { return size(); }
    const float* at(int64_t begin, int64_t, float*) const override { return x_ + begin; }

private:
    const float* x_;
};

void select_top(const Source& x, int64_t count, Selection& selection);  // of largest magnitude; 0 <= count <= size
void select_above(const float* x, int64_t n, float threshold, Selection& selection);
void draw(const float* x, int64_t n, float scale, uint32_t first, uint32_t second, Selection& selection);

// Where `classify` puts the elements between the bounds. What exceeds `capacity` is counted, not kept.
struct Between {
    uint32_t* offset;  // from the first element classified
    uint32_t* magnitude;
    int64_t count, capacity;
};

struct SelectLoops {
    // Sets bit i of `words` where the magnitude is above `high`, counts those, and adds to `between` where it is in
    // [low, high]. Bits past n are zero.
    virtual int64_t classify(
        const float* x, int64_t n, uint32_t low, uint32_t high, uint64_t* words, Between& between
    ) const = 0;
    // Sets bit i of `words` where low <= magnitude < end; returns their number.
    virtual int64_t mark(const float* x, int64_t n, uint32_t low, uint32_t end, uint64_t* words) const = 0;
    // Sets bit i of `words` where the random number is not at least scale * magnitude. Bits past n are zero.
    virtual void draw(const float* x, int64_t n, float scale, Draws draws, uint64_t* words) const = 0;

protected:
    ~SelectLoops() = default;
};

}  // namespace hvd
