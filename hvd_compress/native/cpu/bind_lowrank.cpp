#include <vector>

#include "bind.hpp"
#include "lowrank.hpp"

namespace hvd {
namespace {

using Shape = std::pair<int64_t, int64_t>;

Matrices matrices_of(int64_t size, const std::vector<int64_t>& offsets, const Shape& shape, int64_t rank) {
    const auto [rows, columns] = shape;
    require_count(rows);
    require_count(columns);
    require(1 <= rank && rank <= 1 << 16, "rank must be in 1 to 65536");
    require(!rows || columns <= size / rows, "the matrices must lie in the vector");
    for (const int64_t offset : offsets) {
        require(0 <= offset && offset <= size - rows * columns, "the matrices must lie in the vector");
    }
    return {offsets, rows, columns, static_cast<int>(rank)};
}

const float* factor_of(const py::array& factor, const Matrices& m, int64_t rows, const char* name) {
    const auto x = in<float>(factor, name);
    require(x.size == m.count() * rows * m.rank, "the factor does not fit the matrices");
    return x.data;
}

}  // namespace

void bind_lowrank(py::module_& m) {
    m.def(
        "times",
        [](py::array& vector, const std::vector<int64_t>& offsets, const Shape& shape, const py::array& right,
           int64_t rank, const py::object& plus) {
            const auto x = in<float>(vector, "vector");
            const auto m = matrices_of(x.size, offsets, shape, rank);
            const float* factor = factor_of(right, m, m.columns, "right");
            const float* added = optional_in<float>(plus, x.size, "plus");
            if (added) inout<float>(vector, "vector");
            float* data = const_cast<float*>(x.data);  // changed only with `plus`
            return filled<float>(m.count() * m.rows * rank, [&](float* out) { times(m, data, added, factor, out); });
        },
        array("vector"), py::arg("offsets"), py::arg("shape"), array("right"), py::arg("rank"),
        py::arg("plus").none(true) = py::none()
    );
    m.def(
        "times_transposed",
        [](py::array& vector, const std::vector<int64_t>& offsets, const Shape& shape, const py::array& left,
           int64_t rank, bool rest) {
            const auto x = in<float>(vector, "vector");
            if (rest) inout<float>(vector, "vector");
            const auto m = matrices_of(x.size, offsets, shape, rank);
            const float* factor = factor_of(left, m, m.rows, "left");
            float* data = const_cast<float*>(x.data);  // changed only with `rest`
            return filled<float>(m.count() * m.columns * rank, [&](float* out) {
                times_transposed(m, data, factor, rest, out);
            });
        },
        array("vector"), py::arg("offsets"), py::arg("shape"), array("left"), py::arg("rank"), py::arg("rest") = false
    );
    m.def(
        "add_product",
        [](py::array& total, const std::vector<int64_t>& offsets, const Shape& shape, const py::array& left,
           const py::array& right, int64_t rank, float factor, bool fresh) {
            const auto target = inout<float>(total, "total");
            const auto m = matrices_of(target.size, offsets, shape, rank);
            const float* p = factor_of(left, m, m.rows, "left");
            const float* q = factor_of(right, m, m.columns, "right");
            unlocked([&] { add_product(m, p, q, factor, target.data, fresh); });
        },
        array("total"), py::arg("offsets"), py::arg("shape"), array("left"), array("right"), py::arg("rank"),
        py::arg("factor"), py::arg("fresh") = false
    );
}

}  // namespace hvd
