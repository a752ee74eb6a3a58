#include "bitmap.hpp"

#include "dispatch.hpp"

namespace hvd {

Positions::Positions(const Bits& bits) : bits_(bits) {
    const int parts = parts_of(bits.size);
    before_.assign(static_cast<std::size_t>(parts) + 1, 0);
    for_parts(parts, [&](int part) {
        before_[static_cast<std::size_t>(part) + 1] = loops().bitmap.count_bits(
            bits_, begin_of(part, parts, bits_.words(), 1), begin_of(part + 1, parts, bits_.words(), 1)
        );
    });
    for (int part = 0; part < parts; ++part) before_[part + 1] += before_[part];
}

void Positions::write(int64_t* out) const {
    const int parts = static_cast<int>(before_.size()) - 1;
    for_parts(parts, [&](int part) {
        loops().bitmap.positions(
            bits_, begin_of(part, parts, bits_.words(), 1), begin_of(part + 1, parts, bits_.words(), 1),
            out + before_[part]
        );
    });
}

void encode_bitmap(const int64_t* indices, int64_t count, int64_t size, uint8_t* out) {
    set_ascending(indices, count, size, size, out, [](int64_t, int64_t index) { return index; });
}

}  // namespace hvd
