// Integers of few bits, packed: a plane of bytes for each whole byte of them, then the remaining bits of each eight
// numbers in as many bytes as there are bits (`packed_bytes` in ops/__init__.py).
#pragma once

#include "base.hpp"

namespace hvd {

inline int64_t packed_bytes(int64_t count, int bits) { return count * (bits / 8) + (count + 7) / 8 * (bits % 8); }

// T is uint8_t, int32_t or int64_t; bits above `bits` are ignored.
template <class T>
void pack(const T* numbers, int64_t count, int bits, uint8_t* out);
void unpack(const uint8_t* payload, int64_t count, int bits, int32_t* out);

struct PackLoops {
    // Packs n numbers: byte i to planes + i * stride, the rest to `rest` (whole bytes for every eight numbers).
    virtual void pack(
        const uint8_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest
    ) const = 0;
    virtual void pack(
        const uint16_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest
    ) const = 0;
    virtual void pack(
        const int32_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest
    ) const = 0;
    virtual void pack(
        const int64_t* numbers, int64_t n, int bits, uint8_t* planes, int64_t stride, uint8_t* rest
    ) const = 0;

    // Undoes it: up to 8 bits, 9 to 16, or 0 to 30.
    virtual void unpack(
        const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, uint8_t* out
    ) const = 0;
    virtual void unpack(
        const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, uint16_t* out
    ) const = 0;
    virtual void unpack(
        const uint8_t* planes, int64_t stride, const uint8_t* rest, int64_t n, int bits, int32_t* out
    ) const = 0;

protected:
    ~PackLoops() = default;
};

}  // namespace hvd
