#include "bind.hpp"
#include "elementwise.hpp"

namespace hvd {

void bind_elementwise(py::module_& m) {
    m.def(
        "empty",
        [](int64_t size) {
            require_count(size);
            return make<float>(size);
        },
        py::arg("size")
    );
    m.def(
        "zeros",
        [](int64_t size) {
            require_count(size);
            return filled<float>(size, [&](float* out) { zero(out, 4 * size); });
        },
        py::arg("size")
    );
    m.def(
        "copy",
        [](py::array to, const py::array& source) {
            const auto target = inout<float>(to, "to");
            const auto x = in<float>(source, "source");
            require(target.size == x.size, "to and source must be of one length");
            unlocked([&] { copy(target.data, x.data, 4 * target.size); });
        },
        array("to"), array("source")
    );
    m.def(
        "add_",
        [](py::array total, const py::array& vector) {
            const auto target = inout<float>(total, "total");
            const auto x = in<float>(vector, "vector");
            require(target.size == x.size, "total and vector must be of one length");
            unlocked([&] { add(target.data, x.data, target.size); });
        },
        array("total"), array("vector")
    );
    m.def(
        "affine",
        [](const py::array& x, float a, const py::array& y, float b, const py::object& to) {
            const auto first = in<float>(x, "x"), second = in<float>(y, "y");
            require(first.size == second.size, "x and y must be of one length");
            py::array result = to.is_none() ? py::array(make<float>(first.size)) : to.cast<py::array>();
            const auto target = inout<float>(result, "out");
            require(target.size == first.size, "out must be of one length with x");
            unlocked([&] { affine(first.data, a, second.data, b, first.size, target.data); });
            return result;
        },
        array("x"), py::arg("a"), array("y"), py::arg("b"), py::arg("out").none(true)
    );
    m.def(
        "accumulate",
        [](const py::array& u, float momentum, py::array& vector, const py::array& v, bool nesterov) {
            const auto before = in<float>(u, "u"), sum = in<float>(v, "v");
            const auto g = inout<float>(vector, "vector");
            require(before.size == g.size && sum.size == g.size, "u, vector and v must be of one length");
            return filled<float>(g.size, [&](float* out) {
                accumulate(before.data, momentum, g.data, sum.data, nesterov, g.size, out);
            });
        },
        array("u"), py::arg("momentum"), array("vector"), array("v"), py::arg("nesterov")
    );
    m.def(
        "half_rest",
        [](py::array& vector, const py::object& residual) {
            const auto x = inout<float>(vector, "vector");
            const auto* plus = optional_in<float>(residual, x.size, "residual");
            return filled<uint16_t>(x.size, [&](uint16_t* out) { half_rest(x.data, plus, x.size, out); });
        },
        array("vector"), py::arg("residual").none(true)
    );
    m.def(
        "to_half",
        [](const py::array& vector) {
            const auto x = in<float>(vector, "vector");
            return filled<uint16_t>(x.size, [&](uint16_t* out) { to_half(x.data, x.size, out); });
        },
        array("vector")
    );
    m.def(
        "from_half",
        [](const py::array& halves) {
            const auto x = in<uint16_t>(halves, "halves");
            return filled<float>(x.size, [&](float* out) { from_half(x.data, x.size, out); });
        },
        array("halves")
    );
}

}  // namespace hvd
