#include "bind.hpp"
#include "random.hpp"

namespace hvd {

void bind_random(py::module_& m) {
    m.def(
        "uniform",
        [](int64_t count, const Words& stream) {
            require_count(count);
            return filled<float>(count, [&](float* out) { uniform(stream.first, stream.second, count, out); });
        },
        py::arg("count"), py::arg("stream")
    );
    m.def(
        "distinct",
        [](int64_t count, int64_t size, const Words& stream) {
            require_count(count);
            require(count <= size, "distinct: count must be in 0 to size");
            return filled<int64_t>(count, [&](int64_t* out) {
                distinct(stream.first, stream.second, size, count, out);
            });
        },
        py::arg("count"), py::arg("size"), py::arg("stream")
    );
}

}  // namespace hvd
