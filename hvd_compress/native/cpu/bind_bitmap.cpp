#include "bind.hpp"

namespace hvd {

void bind_bitmap(py::module_& m) {
    m.def(
        "bitmap",
        [](const py::array& indices, int64_t size) {
            const auto at = in<int64_t>(indices, "indices");
            require_count(size);
            return filled<uint8_t>(packed_bytes(size, 1), [&](uint8_t* out) {
                encode_bitmap(at.data, at.size, size, out);
            });
        },
        array("indices"), py::arg("size")
    );
    m.def(
        "set_bits",
        [](const py::array& payload, int64_t size) {
            const auto bytes = in<uint8_t>(payload, "payload");
            require_count(size);
            require(bytes.size >= packed_bytes(size, 1), "payload is too short");
            return positions_of({bytes.data, size});
        },
        array("payload"), py::arg("size")
    );
}

}  // namespace hvd
