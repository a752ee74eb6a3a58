#include <vector>

#include "bind.hpp"
#include "scatter.hpp"

namespace hvd {
namespace {

Sparse sparse_of(const py::array& indices, const py::array& values) {
    const auto at = in<int64_t>(indices, "indices");
    const auto x = in<float>(values, "values");
    require(at.size == x.size, "indices and values must be of one length");
    return {at.data, x.data, at.size};
}

}  // namespace

void bind_scatter(py::module_& m) {
    m.def(
        "take",
        [](const py::array& vector, const py::array& indices) {
            const auto x = in<float>(vector, "vector");
            const auto at = in<int64_t>(indices, "indices");
            return filled<float>(at.size, [&](float* out) { take(x.data, x.size, at.data, at.size, out); });
        },
        array("vector"), array("indices")
    );
    m.def(
        "scatter",
        [](int64_t size, const std::vector<std::pair<py::array, py::array>>& parts, float factor) {
            require_count(size);
            std::vector<Sparse> sparse;
            for (const auto& [indices, values] : parts) {
                sparse.push_back(sparse_of(indices, values));
                require(sparse.back().count <= size, "there are more indices than coordinates");
            }
            return filled<float>(size, [&](float* out) { scatter(sparse, factor, size, out); });
        },
        py::arg("size"), py::arg("parts"), py::arg("factor")
    );
    m.def(
        "scatter_add",
        [](py::array& total, const py::array& indices, const py::array& values) {
            const auto target = inout<float>(total, "total");
            const auto part = sparse_of(indices, values);
            unlocked([&] { scatter_add(target.data, target.size, part.indices, part.count, part.values); });
        },
        array("total"), array("indices"), array("values")
    );
    m.def(
        "take_out",
        [](py::array& vector, const py::array& indices) {
            const auto x = inout<float>(vector, "vector");
            const auto at = in<int64_t>(indices, "indices");
            return filled<float>(at.size, [&](float* out) { take_out(x.data, x.size, at.data, at.size, out); });
        },
        array("vector"), array("indices")
    );
    m.def(
        "scatter_zero",
        [](py::array& total, const py::array& indices) {
            const auto target = inout<float>(total, "total");
            const auto at = in<int64_t>(indices, "indices");
            unlocked([&] { scatter_zero(target.data, target.size, at.data, at.size); });
        },
        array("total"), array("indices")
    );
}

}  // namespace hvd
