#include <cstring>
#include <tuple>
#include <vector>

#include "bind.hpp"
#include "quantize.hpp"

namespace hvd {
namespace {

using Code = std::tuple<std::string, int, float, int, int, int>;

Codec codec_of(const Code& code, const Division& division, int64_t size) {
    const auto& [name, bits, numerator, low, high, scales_each] = code;
    const KindTraits& kind = traits_of(name);
    require(kind.least_bits <= bits && bits <= kind.most_bits, "bits do not fit the kind");
    require(kind.kind != Kind::levels || (low <= 0 && high - low < 1 << bits), "levels do not fit the bits");
    require(0 <= scales_each && scales_each <= 2, "a group has at most two scales");
    return {{kind.kind, bits, numerator, low, high}, groups_of(division, size), scales_each};
}

}  // namespace

void bind_quantize(py::module_& m) {
    m.def(
        "quantize",
        [](py::array& vector, const py::object& residual, bool rest, const Code& code, const Division& groups,
           const py::object& scales, const Words& stream) {
            const auto x = in<float>(vector, "vector");
            if (rest) inout<float>(vector, "vector");
            const auto codec = codec_of(code, groups, x.size);
            auto payload = make<uint8_t>(codec.payload_bytes());
            uint8_t* out = payload.mutable_data();
            const auto* add = optional_in<float>(residual, x.size, "residual");
            require(!add || rest, "a residual goes with rest");
            auto norm = Norm::none;
            if (py::isinstance<py::str>(scales)) {
                const auto name = scales.cast<std::string>();
                require((name == "max" || name == "l2") && codec.scales_each == 1, "scales must be max, l2 or given");
                require(codec.groups.block > 0, "max and l2 are for blocks");
                norm = name == "max" ? Norm::max : Norm::l2;
            } else if (codec.scales_each) {
                const auto given = scales.cast<py::array>();
                const auto values = in<float>(given, "scales");
                require(4 * values.size == codec.scales_bytes(), "there must be as many scales as the groups have");
                std::memcpy(out, values.data, static_cast<std::size_t>(4 * values.size));
            }
            float* data = const_cast<float*>(x.data);  // changed only with `rest`
            unlocked([&] { quantize(codec, norm, data, add, rest, stream.first, stream.second, out); });
            return payload;
        },
        array("vector"), py::arg("residual").none(true), py::arg("rest"), py::arg("code"), py::arg("groups"),
        py::arg("scales").none(true), py::arg("stream")
    );
    m.def(
        "signs",
        [](const py::array& vector, const std::vector<int64_t>& lengths,
           int64_t header) -> std::pair<py::array_t<uint8_t>, py::array_t<double>> {
            const auto x = in<float>(vector, "vector");
            require_count(header);
            const auto groups = groups_of(lengths, x.size);
            auto payload = make<uint8_t>(header + (x.size + 7) / 8);
            uint8_t* packed = payload.mutable_data() + header;
            auto sides = filled<double>(3 * groups.count(), [&](double* sums) { signs(groups, x.data, packed, sums); });
            return {payload, sides};
        },
        array("vector"), py::arg("lengths"), py::arg("header")
    );
    m.def(
        "dequantize",
        [](const std::vector<py::array>& payloads, const Code& code, const Division& groups, int64_t size, float factor,
           bool vote, const py::object& total) {
            require_count(size);
            const auto codec = codec_of(code, groups, size);
            std::vector<const uint8_t*> data;
            for (const auto& payload : payloads) {
                const auto bytes = in<uint8_t>(payload, "payload");
                require(bytes.size == codec.payload_bytes(), "a payload of a wrong length came in");
                data.push_back(bytes.data);
            }
            py::array result = total.is_none() ? py::array(make<float>(size)) : total.cast<py::array>();
            const auto target = inout<float>(result, "total");
            require(target.size == size, "total must be of the given size");
            unlocked([&] { dequantize(codec, data, factor, !total.is_none(), vote, target.data); });
            return result;
        },
        py::arg("payloads"), py::arg("code"), py::arg("groups"), py::arg("size"), py::arg("factor"), py::arg("vote"),
        py::arg("total").none(true)
    );
}

}  // namespace hvd
