// Bitmaps: one bit for each coordinate, and the positions of those that are set.
#pragma once

#include <atomic>
#include <vector>

#include "base.hpp"
#include "elementwise.hpp"
#include "memory.hpp"
#include "pack.hpp"
#include "parallel.hpp"

namespace hvd {

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

// The positions of set bits. They are counted in parts first, so that each thread knows where to write its own.
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

// Writes `size` bits of which those at the indices are set. Throws unless the indices ascend within [0, size).
void encode_bitmap(const int64_t* indices, int64_t count, int64_t size, uint8_t* out);

// Sets bit `position(i, indices[i])` of `length` zero bits for each i. Positions must ascend when the indices do.
// Throws unless the indices ascend within [0, size).
template <class F>
void set_ascending(const int64_t* indices, int64_t count, int64_t size, int64_t length, uint8_t* out, F position) {
    const int64_t bytes = packed_bytes(length, 1);
    zero(out, bytes);
    struct Edge {
        int64_t word = 0;
        uint64_t bits = 0;
    };
    const int parts = parts_of(count);
    std::vector<Edge> edges(2 * static_cast<std::size_t>(parts));
    std::atomic<bool> sound{true};
    for_parts(parts, [&](int part) {
        const int64_t begin = begin_of(part, parts, count, 1), end = begin_of(part + 1, parts, count, 1);
        if (begin == end) return;
        int64_t previous = begin ? indices[begin - 1] : -1;
        const int64_t first =
            indices[begin] > previous && indices[begin] < size ? position(begin, indices[begin]) / 64 : -1;
        int64_t word = first;
        uint64_t bits = 0;
        for (int64_t i = begin; i < end; ++i) {
            const int64_t index = indices[i];
            if (index <= previous || index >= size || first < 0) return sound.store(false);
            previous = index;
            const int64_t bit = position(i, index);
            if (bit / 64 != word) {
                // Only a part's first and last word may hold bits of its neighbours; the others are written whole.
                if (word == first) {
                    edges[2 * part] = {word, bits};
                } else {
                    std::memcpy(out + 8 * word, &bits, 8);
                }
                word = bit / 64;
                bits = 0;
            }
            bits |= uint64_t{1} << bit % 64;
        }
        edges[2 * part + 1] = {word, bits};
    });
    require(sound, NOT_ASCENDING);
    for (const Edge& edge : edges) {
        const auto width = static_cast<std::size_t>(std::min<int64_t>(8, bytes - 8 * edge.word));
        uint64_t old = 0;
        if (!edge.bits) continue;
        std::memcpy(&old, out + 8 * edge.word, width);
        old |= edge.bits;
        std::memcpy(out + 8 * edge.word, &old, width);
    }
}

struct BitmapLoops {
    // Counts the bits of words first to last - 1.
    virtual int64_t count_bits(const Bits& bits, int64_t first, int64_t last) const = 0;
    // Writes the positions of those bits.
    virtual void positions(const Bits& bits, int64_t first, int64_t last, int64_t* out) const = 0;

protected:
    ~BitmapLoops() = default;
};

}  // namespace hvd
