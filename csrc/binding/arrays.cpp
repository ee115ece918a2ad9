// Arguments: every array is checked here, before its pointer goes to C; and what goes back to Python.
#include "binding/binding.h"

#include <cstdlib>

using nb::dlpack::dtype_code;

const gtcb_variant *variant_named(nb::handle name)
{
    if (name.is_none())
        return gtcb_variant_best();
    std::string text = nb::cast<std::string>(name);
    const gtcb_variant *variant = gtcb_variant_named(text.c_str());
    std::string known;
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        known += (i ? ", " : "") + std::string(gtcb_variant_name(gtcb_variant_at(i)));
    if (!variant)
        throw nb::value_error(("variant '" + text + "' does not exist; this build has " + known).c_str());
    if (!gtcb_variant_supported(variant))
        throw nb::value_error(("variant '" + text + "' is not supported by this processor").c_str());
    return variant;
}

gtcb_dtype dtype_named(const std::string &name)
{
    if (name == "float32") return GTCB_F32;
    if (name == "bfloat16") return GTCB_BF16;
    if (name == "float16") return GTCB_F16;
    if (name == "float64") return GTCB_F64;
    throw nb::type_error(("dtype '" + name + "': gradients are float32, float16, bfloat16 or float64").c_str());
}

// Of ml_dtypes: NumPy itself has no bfloat16, and gives no such array away but as its bits.
static bool is_ml_bfloat16(nb::handle array)
{
    const nb::object dtype = nb::getattr(array, "dtype", nb::none());
    return nb::hasattr(array, "view") && std::string(nb::str(dtype).c_str()) == "bfloat16";
}

template <class Array> static std::vector<Array> arrays_of(nb::handle sequence, const char *what, const char *kind)
{
    std::vector<Array> arrays;
    for (nb::handle item : sequence) {
        Array array;
        if (!nb::try_cast<Array>(item, array, false) &&
            !(is_ml_bfloat16(item) && nb::try_cast<Array>(item.attr("view")("uint16"), array, false)))
            throw nb::type_error((std::string(what) + "[" + std::to_string(arrays.size()) + "] is not a " + kind +
                                  " array in the CPU's memory").c_str());
        arrays.push_back(std::move(array));
    }
    return arrays;
}

std::vector<ReadArray> read_arrays(nb::handle sequence, const char *what)
{
    return arrays_of<ReadArray>(sequence, what, "contiguous");
}

std::vector<WriteArray> write_arrays(nb::handle sequence, const char *what)
{
    return arrays_of<WriteArray>(sequence, what, "contiguous, writable");
}

template <class Array> static bool holds(const Array &a, gtcb_dtype dtype)
{
    switch (dtype) {
    case GTCB_F32: return is_dtype(a, dtype_code::Float, 32);
    case GTCB_F64: return is_dtype(a, dtype_code::Float, 64);
    case GTCB_F16: return is_dtype(a, dtype_code::Float, 16);
    default: return is_dtype(a, dtype_code::Bfloat, 16) || is_dtype(a, dtype_code::UInt, 16);   // NumPy has no bfloat16
    }
}

template <class Array> static std::vector<gtcb_segment> segments_in(const std::vector<Array> &arrays, gtcb_dtype dtype)
{
    std::vector<gtcb_segment> segments;
    segments.reserve(arrays.size());
    for (const Array &array : arrays) {
        if (!holds(array, dtype))
            throw nb::type_error(("segments[" + std::to_string(segments.size()) + "] has not the bucket's dtype").c_str());
        segments.push_back({array.data(), array.size()});
    }
    return segments;
}

std::vector<gtcb_segment> segments_of(const std::vector<ReadArray> &arrays, gtcb_dtype dtype) { return segments_in(arrays, dtype); }
std::vector<gtcb_segment> segments_of(const std::vector<WriteArray> &arrays, gtcb_dtype dtype) { return segments_in(arrays, dtype); }

uint64_t total(const std::vector<gtcb_segment> &segments)
{
    uint64_t elements = 0;
    for (const gtcb_segment &segment : segments)
        elements += segment.count;
    return elements;
}

template <class Array> static void check_residual(const Array &array, uint64_t elements, const char *what)
{
    if (!is_dtype(array, dtype_code::Float, 32))
        throw nb::type_error((std::string(what) + " is not float32").c_str());
    if (array.size() != elements)
        throw nb::value_error((std::string(what) + " has " + std::to_string(array.size()) + " elements, the segments have " +
                               std::to_string(elements)).c_str());
}

float *residual_pointer(const WriteArray &array, uint64_t elements, const char *what)
{
    check_residual(array, elements, what);
    return (float *) array.data();
}

std::vector<gtcb_target> targets_of(const std::vector<WriteArray> &arrays, gtcb_dtype &dtype)
{
    std::vector<gtcb_target> targets;
    dtype = !arrays.empty() && holds(arrays[0], GTCB_BF16) ? GTCB_BF16 : GTCB_F32;
    for (const WriteArray &array : arrays) {
        if (!holds(array, dtype))
            throw nb::type_error("a mean goes to arrays that are all float32, or all bfloat16 (NumPy: its bits in uint16)");
        targets.push_back({array.data(), array.size()});
    }
    return targets;
}

const float *residual_pointer(const ReadArray &array, uint64_t elements, const char *what)
{
    check_residual(array, elements, what);
    return (const float *) array.data();
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    const char *x = (const char *) a, *y = (const char *) b;
    return x < y + b_bytes && y < x + a_bytes;
}

void check_overlaps(const std::vector<gtcb_segment> &segments, gtcb_dtype dtype, const float *residual_in,
                    const float *residual_out, uint64_t elements)
{
    size_t bytes = elements * sizeof(float), width = dtype == GTCB_F32 ? 4 : dtype == GTCB_F64 ? 8 : 2;
    if (residual_in != residual_out && overlap(residual_in, bytes, residual_out, bytes))
        throw nb::value_error("residual_in and residual_out overlap in part; pass the same array twice, or two apart");
    for (size_t i = 0; i < segments.size(); i++)
        if (overlap(segments[i].data, segments[i].count * width, residual_out, bytes))
            throw nb::value_error(("segments[" + std::to_string(i) + "] and residual_out overlap; pass a copy of one").c_str());
}

gtcb_element element_of(nb::dlpack::dtype d)
{
    if (d.lanes == 1 && d.code == (uint8_t) dtype_code::UInt && d.bits == 8) return GTCB_BYTES;
    if (d.lanes == 1 && d.code == (uint8_t) dtype_code::Float && d.bits == 32) return GTCB_FLOAT32;
    if (d.lanes == 1 && d.code == (uint8_t) dtype_code::Float && d.bits == 64) return GTCB_FLOAT64;
    if (d.lanes == 1 && d.code == (uint8_t) dtype_code::Bfloat && d.bits == 16) return GTCB_BFLOAT16;
    if (d.lanes == 1 && d.code == (uint8_t) dtype_code::UInt && d.bits == 16) return GTCB_BFLOAT16;   // NumPy has no bfloat16
    throw nb::type_error("the array must be uint8, float32, float64, or uint16 with the bits of bfloat16; convert it, or view it "
                         "as uint8");
}

nb::dict header_dict(const gtcb_header &h)
{
    nb::dict d;
    d["kind"] = h.kind;
    d["flags"] = h.flags;
    d["element"] = h.element;
    d["elements"] = h.elements;
    d["sent"] = h.sent;
    d["body_bytes"] = h.body_bytes;
    d["sequence"] = h.sequence;
    d["bucket"] = h.bucket;
    d["sender"] = h.sender;
    d["threshold"] = h.threshold;
    d["body_checksum"] = h.body_checksum;
    return d;
}

ByteArray own_bytes(uint8_t *data, size_t bytes)
{
    nb::capsule owner(data, [](void *p) noexcept { std::free(p); });
    return ByteArray(data, {bytes}, owner);
}
