// What the files of the binding share: arrays in, errors out. No arithmetic here.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "codec/codec.h"

namespace nb = nanobind;

using ReadArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using WriteArray = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Address = uintptr_t;                     // of a device's memory, or a function's
using ByteArray = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// A failed call: becomes _core.CodecError(status, text).
struct Failure : std::runtime_error {
    gtcb_status status;
    Failure(gtcb_status s, const std::string &text) : std::runtime_error(text), status(s) {}
};

inline void check(gtcb_status status)
{
    if (status != GTCB_OK)
        throw Failure(status, gtcb_status_text(status));
}

const gtcb_variant *variant_named(nb::handle name);           // None: the best one
gtcb_dtype dtype_named(const std::string &name);
std::vector<ReadArray> read_arrays(nb::handle sequence, const char *what);
std::vector<WriteArray> write_arrays(nb::handle sequence, const char *what);
// The segments of one bucket; checks that the arrays are one-dimensional and of that dtype.
std::vector<gtcb_segment> segments_of(const std::vector<ReadArray> &arrays, gtcb_dtype dtype);
std::vector<gtcb_segment> segments_of(const std::vector<WriteArray> &arrays, gtcb_dtype dtype);
// Where a mean goes; checks that all arrays are float32 or all bfloat16, and says which.
std::vector<gtcb_target> targets_of(const std::vector<WriteArray> &arrays, gtcb_dtype &dtype);
uint64_t total(const std::vector<gtcb_segment> &segments);
float *residual_pointer(const WriteArray &array, uint64_t elements, const char *what);
const float *residual_pointer(const ReadArray &array, uint64_t elements, const char *what);
void check_overlaps(const std::vector<gtcb_segment> &segments, gtcb_dtype dtype, const float *residual_in,
                    const float *residual_out, uint64_t elements);
gtcb_element element_of(nb::dlpack::dtype dtype);

template <class Array> bool is_dtype(const Array &array, nb::dlpack::dtype_code code, int bits)
{
    nb::dlpack::dtype d = array.dtype();
    return d.code == (uint8_t) code && d.bits == bits && d.lanes == 1;
}

nb::dict header_dict(const gtcb_header &header);              // the fields of gtcbmuf.backends.Header
// Takes over memory from malloc.
ByteArray own_bytes(uint8_t *data, size_t bytes);

void bind_codec(nb::module_ &m);
void bind_exchange(nb::module_ &m);
#ifdef GTCB_CUDA
void bind_cuda(nb::module_ &m);
#endif
