#include <algorithm>

#include "bind.hpp"
#include "select.hpp"

namespace hvd {

void bind_select(py::module_& m) {
    m.def(
        "top_k",
        [](const py::array& vector, int64_t count) {
            const auto x = in<float>(vector, "vector");
            require_count(count);
            return selected(x.size, [&](Selection& selection) {
                select_top(Vector(x.data, x.size), std::min(count, x.size), selection);
            });
        },
        array("vector"), py::arg("count")
    );
    m.def(
        "above",
        [](const py::array& vector, float threshold) {
            const auto x = in<float>(vector, "vector");
            return selected(x.size, [&](Selection& selection) { select_above(x.data, x.size, threshold, selection); });
        },
        array("vector"), py::arg("threshold")
    );
    m.def(
        "draw",
        [](const py::array& vector, float scale, const Words& stream) {
            const auto x = in<float>(vector, "vector");
            return selected(x.size, [&](Selection& selection) {
                draw(x.data, x.size, scale, stream.first, stream.second, selection);
            });
        },
        array("vector"), py::arg("scale"), py::arg("stream")
    );
}

}  // namespace hvd
