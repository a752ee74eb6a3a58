#include "invertible.hpp"

#include <vector>

namespace hvd {
namespace {

// Finds the block of which a sum is a multiple of the code. Of equal multiples the last one counts.
class Owners {
public:
    explicit Owners(const Invertible& sketch) {
        while (int64_t{1} << bits_ < 2 * sketch.count) ++bits_;
        slots_.resize(std::size_t{1} << bits_);
        for (int64_t i = 0; i < sketch.count; ++i) {
            const auto multiple = static_cast<uint32_t>(sketch.multiples[i]);
            if (multiple) slot_of(multiple) = {multiple, static_cast<int32_t>(sketch.owners[i])};
        }
    }

    int64_t find(uint32_t sum) {  // -1 for none
        const Slot& slot = slot_of(sum);
        return slot.multiple ? slot.block : -1;
    }

private:
    struct Slot {
        uint32_t multiple = 0;  // 0 for an empty one
        int32_t block = 0;
    };

    Slot& slot_of(uint32_t multiple) {
        const std::size_t mask = slots_.size() - 1;
        std::size_t at = multiple * 0x9E3779B1u >> (32 - bits_);
        while (slots_[at].multiple && slots_[at].multiple != multiple) at = (at + 1) & mask;
        return slots_[at];
    }

    int bits_ = 1;
    std::vector<Slot> slots_;
};

}  // namespace

int64_t recover(const Invertible& s, int64_t passes, uint32_t* table, Selection& found) {
    Owners owners(s);
    zero(found.words(), 8 * ((s.size + 63) / 64));
    const int64_t words = (s.columns + 63) / 64;
    std::vector<uint64_t> changed(s.rows * words, ~uint64_t{0});  // since the row was read
    int idle = 0;
    for (int64_t pass = 0; pass < passes * s.rows && idle < s.rows; ++pass) {
        const auto row = static_cast<int>(pass % s.rows);
        ++idle;
        for (int64_t word = 0; word < words; ++word) {
            uint64_t bits = changed[row * words + word];
            changed[row * words + word] = 0;
            for (; bits; bits &= bits - 1) {
                const int64_t place = 64 * word + __builtin_ctzll(bits);
                if (place >= s.columns) break;
                const uint32_t sum = table[row * s.columns + place];
                const int64_t block = sum ? owners.find(sum) : -1;
                if (block < 0) continue;
                int64_t position = place - s.shifts[row * s.blocks() + block];
                if (position < 0) position += s.columns;
                const int64_t index = block * s.columns + position;
                if (index >= s.size) continue;
                idle = 0;
                found.words()[index / 64] |= uint64_t{1} << index % 64;
                for (int r = 0; r < s.rows; ++r) {
                    const int64_t at = s.column_of(position, s.shifts[r * s.blocks() + block]);
                    table[r * s.columns + at] -= sum;
                    if (r != row) changed[r * words + at / 64] |= uint64_t{1} << at % 64;
                }
            }
        }
    }
    int64_t left = 0;
    for (int64_t i = 0; i < s.rows * s.columns; ++i) left += table[i] != 0;
    return left;
}

}  // namespace hvd
