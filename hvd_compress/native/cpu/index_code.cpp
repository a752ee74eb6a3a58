#include "index_code.hpp"

#include <algorithm>
#include <atomic>

#include "bitmap.hpp"
#include "dispatch.hpp"
#include "pack.hpp"
#include "parallel.hpp"

namespace hvd {
namespace {

constexpr const char* UNSOUND = "the indices that came in are not those of an encoder: wrong number, order or range";

}  // namespace

IndexCode::IndexCode(int64_t size_, int64_t count_)
    : size(size_), count(count_), low(0), high_bits(size_), bitmap(true) {
    require(0 <= count && count <= size, "count must be in 0 to size");
    if (!count) {
        high_bits = 0;
        return;
    }
    const int bits = std::max(0, bit_length(static_cast<uint64_t>(size / count)) - 1);
    const int64_t high = count + ((size - 1) >> bits);
    if (packed_bytes(size, 1) <= packed_bytes(count, bits) + packed_bytes(high, 1)) return;
    require(bits <= 30, "indices that far apart have no code");
    low = bits;
    high_bits = high;
    bitmap = false;
}

int64_t IndexCode::bytes() const { return packed_bytes(count, low) + packed_bytes(high_bits, 1); }

void encode_indices(const IndexCode& code, const int64_t* indices, uint8_t* out) {
    if (code.bitmap) return encode_bitmap(indices, code.count, code.high_bits, out);
    pack(indices, code.count, code.low, out);
    const int low = code.low;
    set_ascending(
        indices, code.count, code.size, code.high_bits, out + packed_bytes(code.count, low),
        [low](int64_t i, int64_t index) { return (index >> low) + i; }
    );
}

void decode_indices(const IndexCode& code, const uint8_t* payload, int64_t* out) {
    const uint8_t* high = payload + packed_bytes(code.count, code.low);
    const Positions positions({high, code.high_bits});
    require(positions.count() == code.count, UNSOUND);
    positions.write(out);
    if (code.bitmap) return;
    const int whole = code.low / 8, part = code.low % 8;
    const uint8_t* rest = payload + code.count * whole;
    std::atomic<bool> sound{true};
    for_ranges(code.count, CHUNK, [&](int64_t first, int64_t last) {
        int32_t low[CHUNK];
        for (int64_t begin = first; begin < last; begin += CHUNK) {
            const int64_t size = std::min(CHUNK, last - begin);
            loops().pack.unpack(payload + begin, code.count, rest + begin / 8 * part, size, code.low, low);
            int64_t* at = out + begin;
            for (int64_t i = 0; i < size; ++i) at[i] = ((at[i] - begin - i) << code.low) | low[i];
            bool fine = true;
            for (int64_t i = 1; i < size; ++i) fine &= at[i] > at[i - 1];
            if (!fine) sound.store(false);
        }
    });
    for (int64_t i = CHUNK; i < code.count; i += CHUNK) {
        if (out[i] <= out[i - 1]) sound.store(false);
    }
    require(sound && out[code.count - 1] < code.size, UNSOUND);
}

}  // namespace hvd
