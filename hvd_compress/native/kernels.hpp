// The inner loops, which run on one thread over a part of an array. kernels.inc is compiled once for each level of
// SIMD, and `algorithms.cpp` calls them through a table. All levels give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HVD_X86  // and a compiler that takes `#pragma GCC target`
#endif

namespace hvd {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian");

constexpr int64_t CHUNK = 2048;  // elements that fit into the first-level cache in any dtype
constexpr int64_t PIECE = 4096;  // elements of a partial sum: fixed, so that sums do not depend on the threads

// The bits of a float without its sign, ordered as the magnitudes are, with NaN above all numbers.
inline uint32_t magnitude_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits & 0x7FFFFFFF;
}

// `size` bits in bytes, of which `word` reads 64 and nothing beyond the last byte; bits past `size` are zero.
struct Bits {
    const uint8_t* data;
    int64_t size;

    int64_t words() const { return (size + 63) / 64; }
    uint64_t word(int64_t w) const {
        uint64_t value = 0;
        const int64_t left = size - 64 * w;
        if (left >= 64) {
            std::memcpy(&value, data + 8 * w, 8);
            return value;
        }
        std::memcpy(&value, data + 8 * w, static_cast<std::size_t>((left + 7) / 8));
        return value & ((uint64_t{1} << left) - 1);
    }
};

// Where `classify` puts the elements between the bounds. What exceeds `capacity` is counted, not kept.
struct Between {
    uint32_t* offset;  // from the first element classified
    uint32_t* magnitude;
    int64_t count, capacity;
};

// A random permutation of range(4^half): a Feistel network (see ops/random.py).
struct Feistel {
    int half;
    uint32_t keys[6];
    uint64_t size;  // results from here on are permuted again
};

// How a quantizer makes codes of coordinates and values of codes; compressors/quantize.py and sign.py have the formulas.
// A group of coordinates has up to two scales.
struct Quantizer {
    enum Kind { levels, natural, dynamic, bfloat, sign } kind;
    int bits;
    float numerator;  // of levels: the coordinate is multiplied by numerator / scale
    int low, high;    // of levels: the least and the largest
};

// The random numbers of consecutive coordinates.
struct Draws {
    uint32_t first, second, index;  // of the first coordinate
};

struct Kernels {
    const char* name;

    // Sets bit i of `words` where the magnitude is above `high`, counts those, and adds to `between` where it is in
    // [low, high]. Bits past n are zero.
    int64_t (*classify)(const float* x, int64_t n, uint32_t low, uint32_t high, uint64_t* words, Between& between);
    // Sets bit i of `words` where low <= magnitude < end; returns their number.
    int64_t (*select)(const float* x, int64_t n, uint32_t low, uint32_t end, uint64_t* words);
    // Counts the bits of words first to last - 1.
    int64_t (*count_bits)(const Bits& bits, int64_t first, int64_t last);
    // Writes the positions of those bits.
    void (*positions)(const Bits& bits, int64_t first, int64_t last, int64_t* out);

    // Packs n numbers: byte i to planes + i * stride, the rest to `rest` (whole bytes for every eight numbers).
    void (*pack8)(const uint8_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest);
    void (*pack16)(const uint16_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest);
    void (*pack32)(const int32_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest);
    void (*pack64)(const int64_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest);
    void (*unpack)(const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, int32_t* out);

    void (*unpack8)(const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, uint8_t* out);
    void (*unpack16)(const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, uint16_t* out);

    // Codes of the n coordinates of a group, of at most 8 bits or of more, rounded by 16 random bits each; with `rest`,
    // x becomes x (plus the residual, if it is not null) minus their values.
    void (*quantize8)(
        const Quantizer& q, const float* scales, float* x, const float* residual, int64_t n, bool rest,
        const uint16_t* noise, uint8_t* codes
    );
    void (*quantize16)(
        const Quantizer& q, const float* scales, float* x, const float* residual, int64_t n, bool rest,
        const uint16_t* noise, uint16_t* codes
    );
    // Sets `total` to factor times the values of codes, or adds them to it.
    void (*dequantize8)(
        const Quantizer& q, const float* scales, const uint8_t* codes, int64_t n, float factor, bool add, float* total
    );
    void (*dequantize16)(
        const Quantizer& q, const float* scales, const uint16_t* codes, int64_t n, float factor, bool add, float* total
    );
    void (*to_sign)(float* x, int64_t n);
    void (*stream)(float* to, const float* from, int64_t n);  // past the caches, where `to` is aligned to 64 bytes

    // Random words and numbers in [0, 1) of the indices begin to begin + n - 1.
    void (*words)(uint32_t first, uint32_t second, int64_t begin, int64_t n, uint32_t* out);
    void (*uniform)(uint32_t first, uint32_t second, int64_t begin, int64_t n, float* out);
    // 16 random bits for each of n coordinates, from that of index draws.index on; both are multiples of 32.
    void (*noise)(Draws draws, int64_t n, uint16_t* out);
    void (*permute)(const Feistel& feistel, int64_t begin, int64_t n, int64_t* out);

    // Of x, or of x + plus if it is not null; n <= PIECE for the sums.
    uint32_t (*largest)(const float* x, const float* plus, int64_t n);  // magnitude, as bits
    double (*squares)(const float* x, const float* plus, int64_t n);  // their sum
    void (*sides)(const float* x, const float* plus, int64_t n, double* out);  // adds two sums and a number
    // Adds to out[0] the sum of the magnitudes below the bound, and to out[1] the number of the others; n <= PIECE.
    void (*sum_below)(const float* x, int64_t n, float bound, double* out);
    // Sets bit i of `words` where the random number is not at least scale * magnitude. Bits past n are zero.
    void (*draw)(const float* x, int64_t n, float scale, Draws draws, uint64_t* words);
    void (*add)(const float* x, const float* y, int64_t n, float* out);
    void (*affine)(const float* x, float a, const float* y, float b, int64_t n, float* out);  // a * x + b * y
    // Of x, plus the residual if it is not null: the halves, as bits; x becomes what they do not carry.
    void (*half_rest)(float* x, const float* residual, int64_t n, uint16_t* halves);
    void (*to_half)(const float* x, int64_t n, uint16_t* halves);
    void (*from_half)(const uint16_t* halves, int64_t n, float* out);

    // Adds x to `total`, element i with the sign of bit `bit + i` of `signs`, all turned round if `negative`.
    void (*add_signed)(const float* x, const uint32_t* signs, int64_t bit, int64_t n, bool negative, float* total);
    // Medians of `count` rows (odd, at most 15) with signs likewise; row r is turned round if bit r of `flips` is set.
    void (*median)(
        const float* const* rows, int count, uint32_t flips, const uint32_t* signs, int64_t bit, int64_t n, float* out
    );

    // Products of a matrix of rows x with a factor of few columns, which is given transposed: a row of n numbers for
    // each of `rank` columns. `dots` multiplies one row; `add_multiples` adds to row k of `out`, `stride` apart, left[k]
    // times x; `add_product` adds to `total` the sum of left[k] times row k.
    void (*dots)(const float* x, const float* rows, int64_t n, int rank, float* out);
    void (*add_multiples)(const float* x, const float* left, int64_t n, int rank, int64_t stride, float* out);
    void (*add_product)(const float* left, const float* rows, int64_t n, int rank, float* total);
};

extern const Kernels PORTABLE;
#ifdef HVD_X86
extern const Kernels AVX2;
extern const Kernels AVX512;
#endif

}  // namespace hvd
