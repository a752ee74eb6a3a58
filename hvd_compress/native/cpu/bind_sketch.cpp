#include <algorithm>
#include <tuple>
#include <vector>

#include "bind.hpp"
#include "invertible.hpp"
#include "sketch.hpp"

namespace hvd {
namespace {

using Arrays = std::tuple<py::array, py::array, py::array>;  // shifts, flips and signs

struct Table {
    Hashing hashing;
    Span<const float> sums;
};

template <class T>
void require_below(Span<const T> numbers, T limit, const char* message) {
    for (int64_t i = 0; i < numbers.size; ++i) require(0 <= numbers.data[i] && numbers.data[i] < limit, message);
}

Rotation rotation_of(int64_t size, int rows, int64_t sums, const py::array& array) {
    require(1 <= rows && rows <= MOST_ROWS, "rows must be in 1 to 15");
    require(1 <= size && size <= int64_t{1} << 40, "size must be in 1 to 2^40");
    require(sums >= rows && sums % rows == 0, "table must have as many sums in each row");
    const auto shifts = in<int64_t>(array, "shifts");
    const Rotation rotation{size, sums / rows, rows, shifts.data};
    require(shifts.size == rows * rotation.blocks(), "shifts do not fit the table");
    require_below(shifts, rotation.columns, "a shift is out of range");
    return rotation;
}

Table table_of(const py::array& table, int64_t size, int rows, const Arrays& arrays) {
    const auto sums = in<float>(table, "table");
    require(1 <= rows && rows <= MOST_ROWS && rows % 2, "rows must be odd, in 1 to 15");
    const auto rotation = rotation_of(size, rows, sums.size, std::get<0>(arrays));
    const auto flips = in<uint8_t>(std::get<1>(arrays), "flips");
    const auto signs = in<uint32_t>(std::get<2>(arrays), "signs");
    const Hashing hashing{rotation, flips.data, signs.data};
    const bool fits = flips.size == rows * hashing.blocks() && signs.size == (hashing.columns + 31) / 32;
    require(fits, "flips or signs do not fit the table");
    require_below(flips, uint8_t{2}, "a flip is out of range");
    return {hashing, sums};
}

}  // namespace

void bind_sketch(py::module_& m) {
    m.def(
        "sketch",
        [](py::array& table, int64_t size, int rows, const Arrays& arrays, const py::array& vector, int64_t offset) {
            const auto hashing = table_of(table, size, rows, arrays).hashing;
            const auto x = in<float>(vector, "vector");
            require(0 <= offset && x.size <= size - offset, "the vector must lie in the size");
            float* sums = inout<float>(table, "table").data;
            unlocked([&] { sketch(hashing, x.data, offset, x.size, sums); });
        },
        array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), array("vector"), py::arg("offset")
    );
    m.def(
        "sketch_sparse",
        [](py::array& table, int64_t size, int rows, const Arrays& arrays, const py::array& indices,
           const py::array& values) {
            const auto hashing = table_of(table, size, rows, arrays).hashing;
            const auto at = in<int64_t>(indices, "indices");
            const auto x = in<float>(values, "values");
            require(at.size == x.size, "indices and values must be of one length");
            float* sums = inout<float>(table, "table").data;
            unlocked([&] { sketch_sparse(hashing, {at.data, x.data, at.size}, sums); });
        },
        array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), array("indices"), array("values")
    );
    m.def(
        "estimate",
        [](const py::array& table, int64_t size, int rows, const Arrays& arrays, const py::object& indices) {
            const auto known = table_of(table, size, rows, arrays);
            const float* sums = known.sums.data;
            if (indices.is_none()) return filled<float>(size, [&](float* out) { estimate(known.hashing, sums, out); });
            const auto at = in<int64_t>(indices.cast<py::array>(), "indices");
            return filled<float>(at.size, [&](float* out) { estimate_at(known.hashing, sums, at.data, at.size, out); });
        },
        array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), py::arg("indices").none(true)
    );
    m.def(
        "heavy",
        [](const py::array& table, int64_t size, int rows, const Arrays& arrays, int64_t count) {
            const auto known = table_of(table, size, rows, arrays);
            require_count(count);
            return selected(size, [&](Selection& selection) {
                select_heavy(known.hashing, known.sums.data, std::min(count, size), selection);
            });
        },
        array("table"), py::arg("size"), py::arg("rows"), py::arg("hashing"), py::arg("count")
    );
    m.def(
        "recover",
        [](const py::array& table, int64_t size, int rows, const py::array& shifts, const py::array& multiples,
           const py::array& owners, int64_t passes) -> std::pair<py::array_t<int64_t>, int64_t> {
            const auto sums = in<int32_t>(table, "table");
            const auto codes = in<int32_t>(multiples, "multiples");
            const auto blocks = in<int64_t>(owners, "owners");
            const Invertible known{rotation_of(size, rows, sums.size, shifts), codes.data, blocks.data, codes.size};
            require(
                codes.size == blocks.size && codes.size <= int64_t{1} << 30,
                "multiples and owners must be of one length"
            );
            require(0 <= passes && passes <= 1 << 20, "passes must be in 0 to 2^20");
            require_below(blocks, std::min(known.blocks(), int64_t{1} << 31), "an owner is out of range");
            int64_t left = 0;
            auto found = selected(size, [&](Selection& selection) {
                std::vector<uint32_t> copy(sums.data, sums.data + sums.size);
                left = recover(known, passes, copy.data(), selection);
            });
            return {found, left};
        },
        array("table"), py::arg("size"), py::arg("rows"), array("shifts"), array("multiples"), array("owners"),
        py::arg("passes")
    );
}

}  // namespace hvd
