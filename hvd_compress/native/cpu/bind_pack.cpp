#include "bind.hpp"
#include "pack.hpp"

namespace hvd {
namespace {

void require_bits(int bits) { require(0 <= bits && bits <= 30, "bits must be in 0 to 30"); }

template <class T>
py::array_t<uint8_t> pack_as(const py::array& numbers, int bits) {
    const auto x = in<T>(numbers, "numbers");
    return filled<uint8_t>(packed_bytes(x.size, bits), [&](uint8_t* out) { pack(x.data, x.size, bits, out); });
}

}  // namespace

void bind_pack(py::module_& m) {
    m.def(
        "pack",
        [](const py::array& numbers, int bits) {
            require_bits(bits);
            if (numbers.dtype().equal(py::dtype::of<uint8_t>())) return pack_as<uint8_t>(numbers, bits);
            if (numbers.dtype().equal(py::dtype::of<int32_t>())) return pack_as<int32_t>(numbers, bits);
            return pack_as<int64_t>(numbers, bits);
        },
        array("numbers"), py::arg("bits")
    );
    m.def(
        "unpack",
        [](const py::array& payload, int bits, int64_t count) {
            const auto bytes = in<uint8_t>(payload, "payload");
            require_bits(bits);
            require_count(count);
            require(bytes.size == packed_bytes(count, bits), "payload is of the wrong length");
            return filled<int32_t>(count, [&](int32_t* out) { unpack(bytes.data, count, bits, out); });
        },
        array("payload"), py::arg("bits"), py::arg("count")
    );
}

}  // namespace hvd
