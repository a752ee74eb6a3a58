#include "pack.hpp"

#include "dispatch.hpp"
#include "parallel.hpp"

namespace hvd {

template <class T>
void pack(const T* numbers, int64_t count, int bits, uint8_t* out) {
    uint8_t* rest = out + count * (bits / 8);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        loops().pack.pack(numbers + begin, end - begin, bits, out + begin, count, rest + begin / 8 * (bits % 8));
    });
}
template void pack(const uint8_t*, int64_t, int, uint8_t*);
template void pack(const int32_t*, int64_t, int, uint8_t*);
template void pack(const int64_t*, int64_t, int, uint8_t*);

void unpack(const uint8_t* payload, int64_t count, int bits, int32_t* out) {
    const uint8_t* rest = payload + count * (bits / 8);
    for_ranges(count, CHUNK, [&](int64_t begin, int64_t end) {
        loops().pack.unpack(payload + begin, count, rest + begin / 8 * (bits % 8), end - begin, bits, out + begin);
    });
}

}  // namespace hvd
