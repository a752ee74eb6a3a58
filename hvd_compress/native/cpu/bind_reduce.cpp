#include "bind.hpp"
#include "reduce.hpp"

namespace hvd {
namespace {

// A vector, what is added to it (or null), and its groups.
struct Grouped {
    Span<const float> x;
    const float* plus;
    Groups groups;

    Grouped(const py::array& vector, const Division& division, const py::object& plus_)
        : x(in<float>(vector, "vector")),
          plus(optional_in<float>(plus_, x.size, "plus")),
          groups(groups_of(division, x.size)) {}
};

}  // namespace

void bind_reduce(py::module_& m) {
    m.def(
        "all_finite",
        [](const py::array& vector) {
            const auto x = in<float>(vector, "vector");
            return unlocked([&] { return all_finite(x.data, x.size); });
        },
        array("vector")
    );
    m.def(
        "sum_abs_below",
        [](const py::array& vector, float bound) -> std::pair<double, int64_t> {
            const auto x = in<float>(vector, "vector");
            double result[2];
            unlocked([&] { sum_below(x.data, x.size, bound, result); });
            return {result[0], static_cast<int64_t>(result[1])};
        },
        array("vector"), py::arg("bound")
    );
    m.def(
        "group_max_abs",
        [](const py::array& vector, const Division& groups, const py::object& plus) {
            const Grouped g(vector, groups, plus);
            return filled<float>(g.groups.count(), [&](float* out) { group_max_abs(g.x.data, g.plus, g.groups, out); });
        },
        array("vector"), py::arg("groups"), py::arg("plus").none(true)
    );
    m.def(
        "group_max_square",
        [](const py::array& vector, const Division& groups,
           const py::object& plus) -> std::pair<py::array_t<float>, py::array_t<double>> {
            const Grouped g(vector, groups, plus);
            auto max = make<float>(g.groups.count());
            float* largest = max.mutable_data();
            auto square = filled<double>(g.groups.count(), [&](double* sums) {
                group_max_square(g.x.data, g.plus, g.groups, largest, sums);
            });
            return {max, square};
        },
        array("vector"), py::arg("groups"), py::arg("plus").none(true)
    );
    m.def(
        "group_sides",
        [](const py::array& vector, const Division& groups, const py::object& plus) {
            const Grouped g(vector, groups, plus);
            return filled<double>(3 * g.groups.count(), [&](double* out) {
                group_sides(g.x.data, g.plus, g.groups, out);
            });
        },
        array("vector"), py::arg("groups"), py::arg("plus").none(true)
    );
}

}  // namespace hvd
