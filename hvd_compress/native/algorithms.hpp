// What the module offers, on plain pointers: the inner loops divided among threads. Results do not depend on the number
// of threads. What a caller could get wrong (lengths, ranges, payloads) raises std::invalid_argument.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace hvd {

// --- settings of the process

std::vector<std::string> simd_levels();  // those that this processor has, the best one last
const char* simd();
void set_simd(const std::string& level);

// --- bitmaps and selection

// Bits that were counted by parts, so that threads can write their positions side by side.
class Positions {
public:
    explicit Positions(const Bits& bits);
    int64_t count() const { return before_.back(); }
    void write(int64_t* out) const;

private:
    Bits bits_;
    std::vector<int64_t> before_;  // bits before each part, and their total
};

// One bit for each element of a vector.
class Selection {
public:
    explicit Selection(int64_t size) : words_((size + 63) / 64), size_(size) {}
    uint64_t* words() { return words_.get(); }
    Bits bits() { return {reinterpret_cast<const uint8_t*>(words_.get()), size_}; }

private:
    Scratch<uint64_t> words_;
    int64_t size_;
};

// What is selected from: a vector, or what can be computed piece by piece.
class Source {
public:
    explicit Source(int64_t size) : size_(size) {}
    virtual ~Source() = default;
    int64_t size() const { return size_; }
    virtual int64_t tile() const = 0;  // elements to ask for together: CHUNK, or any number if no buffer is used
    // Returns elements begin to begin + n - 1, perhaps in a buffer of CHUNK.
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

void take(const float* x, int64_t n, const int64_t* indices, int64_t count, float* out);
void require_ascending(const int64_t* indices, int64_t count, int64_t size);  // throws std::invalid_argument
void scatter_add(float* total, int64_t n, const int64_t* indices, int64_t count, const float* values);

// Ascending distinct indices and a value for each.
struct Sparse {
    const int64_t* indices;
    const float* values;
    int64_t count;
};

void scatter(const std::vector<Sparse>& parts, float factor, int64_t n, float* out);  // all else is zero

// --- random numbers

void uniform(uint32_t first, uint32_t second, int64_t count, float* out);
void distinct(uint32_t first, uint32_t second, int64_t size, int64_t count, int64_t* out);

// --- packing and index codes

int64_t packed_bytes(int64_t count, int bits);
template <class T>
void pack(const T* numbers, int64_t count, int bits, uint8_t* out);
void unpack(const uint8_t* payload, int64_t count, int bits, int32_t* out);

// The code of `count` indices below `size`, as in compressors/indices.py.
struct IndexCode {
    IndexCode(int64_t size, int64_t count);
    int64_t size, count;
    int low;             // bits that are packed, of each index
    int64_t high_bits;   // length of the bitmap of the others
    bool bitmap;         // or one bitmap of all, and low = 0
    int64_t bytes() const;
};

void encode_bitmap(const int64_t* indices, int64_t count, int64_t size, uint8_t* out);
void encode_indices(const IndexCode& code, const int64_t* indices, uint8_t* out);
void decode_indices(const IndexCode& code, const uint8_t* payload, int64_t* out);

// --- whole vectors

void zero(void* data, int64_t bytes);
void copy(void* to, const void* from, int64_t bytes);
void add(float* total, const float* x, int64_t n);
void affine(const float* x, float a, const float* y, float b, int64_t n, float* out);
void half_rest(float* x, const float* residual, int64_t n, uint16_t* halves);
void to_half(const float* x, int64_t n, uint16_t* halves);
void from_half(const uint16_t* halves, int64_t n, float* out);
bool all_finite(const float* x, int64_t n);
// Of x, or of x + plus if it is not null:
void group_max_abs(const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, float* out);
void group_max_square(
    const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, float* max, double* square
);
void group_sides(const float* x, const float* plus, int64_t n, const int64_t* lengths, int64_t groups, double* out);
void sum_below(const float* x, int64_t n, float bound, double* out);  // the sum, and the number of the others

// --- products of low rank

// Matrices of one shape that lie in a vector, each with a factor of `rank` columns, one behind the other.
struct Matrices {
    std::vector<int64_t> offsets;
    int64_t rows, columns;
    int rank;

    int64_t count() const { return static_cast<int64_t>(offsets.size()); }
};

void times(const Matrices& m, const float* vector, const float* right, float* out);             // M Q
void times_transposed(const Matrices& m, const float* vector, const float* left, float* out);   // M^T P
void add_product(const Matrices& m, const float* left, const float* right, float factor, float* total);  // P Q^T

}  // namespace hvd
