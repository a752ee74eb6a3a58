#include "bind.hpp"
#include "index_code.hpp"

namespace hvd {

void bind_index_code(py::module_& m) {
    m.def(
        "encode_indices",
        [](const py::array& indices, int64_t size) {
            const auto at = in<int64_t>(indices, "indices");
            require_count(size);
            const IndexCode code(size, at.size);
            return filled<uint8_t>(code.bytes(), [&](uint8_t* out) { encode_indices(code, at.data, out); });
        },
        array("indices"), py::arg("size")
    );
    m.def(
        "decode_indices",
        [](const py::array& payload, int64_t size, int64_t count) {
            const auto bytes = in<uint8_t>(payload, "payload");
            require_count(size);
            const IndexCode code(size, count);
            require(bytes.size == code.bytes(), "the bytes of indices that came in are of the wrong length");
            return filled<int64_t>(count, [&](int64_t* out) { decode_indices(code, bytes.data, out); });
        },
        array("payload"), py::arg("size"), py::arg("count")
    );
}

}  // namespace hvd
