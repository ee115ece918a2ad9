// The codec for Python (gtcbmuf/backends/native.py).
#include "binding/binding.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "exchange/pool.h"

// Pools are kept for the life of the process: their threads sleep between calls.
static const gtcb_executor *executor_with(size_t threads)
{
    static std::mutex mutex;
    static std::map<size_t, gtcb_pool *> pools;
    if (threads <= 1)
        return nullptr;
    std::lock_guard<std::mutex> guard(mutex);
    gtcb_pool *&pool = pools[threads];
    if (!pool)
        check(gtcb_pool_open(threads, &pool));
    return gtcb_pool_executor(pool);
}

static ByteArray encode(nb::handle segment_list, const std::string &dtype_name, ReadArray residual_in, WriteArray residual_out,
                        float threshold, nb::object max_sent, uint64_t sequence, uint32_t bucket, uint32_t sender,
                        nb::object variant_name, size_t threads)
{
    gtcb_dtype dtype = dtype_named(dtype_name);
    const gtcb_variant *variant = variant_named(variant_name);
    std::vector<ReadArray> arrays = read_arrays(segment_list, "segments");
    std::vector<gtcb_segment> segments = segments_of(arrays, dtype);
    gtcb_encode_job job = {};
    job.segments = segments.data();
    job.segment_count = segments.size();
    job.dtype = dtype;
    job.elements = total(segments);
    job.residual_in = residual_pointer(residual_in, job.elements, "residual_in");
    job.residual_out = residual_pointer(residual_out, job.elements, "residual_out");
    check_overlaps(segments, dtype, job.residual_in, job.residual_out, job.elements);
    job.threshold = threshold;
    job.max_sent = max_sent.is_none() ? GTCB_NO_CAP : nb::cast<uint64_t>(max_sent);
    job.sequence = sequence;
    job.bucket = bucket;
    job.sender = sender;
    const gtcb_executor *executor = executor_with(threads);

    size_t capacity = gtcb_message_capacity(job.elements), bytes = 0;
    std::unique_ptr<uint32_t, void (*)(void *)> scratch((uint32_t *) std::malloc(4 * gtcb_scratch_words(job.elements) + 4), std::free);
    std::unique_ptr<uint8_t, void (*)(void *)> message((uint8_t *) std::malloc(capacity), std::free);
    if (!scratch || !message)
        throw std::bad_alloc();
    job.scratch = scratch.get();
    gtcb_status status;
    {
        nb::gil_scoped_release released;
        status = gtcb_encode(variant, &job, executor, message.get(), capacity, &bytes);
    }
    check(status);
    void *fitted = std::realloc(message.get(), bytes);    // gives back what a sparse message did not need
    if (fitted) {
        message.release();
        message.reset((uint8_t *) fitted);
    }
    return own_bytes(message.release(), bytes);
}

static ByteArray raw(ReadArray array, uint64_t weight, uint64_t sequence, uint32_t bucket, uint32_t sender,
                     nb::object variant_name)
{
    const gtcb_variant *variant = variant_named(variant_name);
    gtcb_element element = element_of(array.dtype());
    size_t body = array.size() * gtcb_raw_bytes(element);
    std::unique_ptr<uint8_t, void (*)(void *)> message((uint8_t *) std::malloc(GTCB_HEADER_BYTES + body), std::free);
    if (!message)
        throw std::bad_alloc();
    gtcb_header header;
    gtcb_status status;
    {
        nb::gil_scoped_release released;
        if (body)
            std::memcpy(message.get() + GTCB_HEADER_BYTES, array.data(), body);
        status = gtcb_write_raw_header(variant, element, message.get() + GTCB_HEADER_BYTES, array.size(), weight, sequence,
                                       bucket, sender, message.get());
    }
    check(status);
    check(gtcb_read_header(message.get(), &header));
    return own_bytes(message.release(), GTCB_HEADER_BYTES + header.body_bytes);
}

using Message = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static gtcb_header header_of(const Message &message)
{
    gtcb_header header;
    if (message.size() < GTCB_HEADER_BYTES)
        throw Failure(GTCB_TRUNCATED, "shorter than a header of 64 bytes");
    check(gtcb_read_header(message.data(), &header));
    return header;
}

static void validate(Message message, nb::object variant_name)
{
    const gtcb_variant *variant = variant_named(variant_name);
    header_of(message);
    gtcb_status status;
    {
        nb::gil_scoped_release released;
        status = gtcb_validate(variant, message.data(), message.data() + GTCB_HEADER_BYTES, message.size() - GTCB_HEADER_BYTES);
    }
    check(status);
}

// Validates all messages first, so that nothing is written if one is not sound.
static void decode_add(nb::handle list, WriteArray dense, nb::object variant_name, size_t threads)
{
    const gtcb_variant *variant = variant_named(variant_name);
    const gtcb_executor *executor = executor_with(threads);
    float *out = residual_pointer(dense, dense.size(), "dense");
    std::vector<Message> arrays;
    std::vector<gtcb_message> messages;
    for (nb::handle item : list) {
        arrays.push_back(nb::cast<Message>(item, false));
        header_of(arrays.back());
        messages.push_back({arrays.back().data(), arrays.back().data() + GTCB_HEADER_BYTES});
    }
    gtcb_status status = GTCB_OK;
    size_t bad = 0;
    {
        nb::gil_scoped_release released;
        for (; bad < arrays.size() && !status; bad++)
            status = gtcb_validate(variant, messages[bad].header, messages[bad].body, arrays[bad].size() - GTCB_HEADER_BYTES);
        if (!status)
            status = gtcb_decode_add(variant, messages.data(), messages.size(), out, dense.size(), executor);
    }
    if (status)
        throw Failure(status, "messages[" + std::to_string(bad ? bad - 1 : 0) + "]: " + gtcb_status_text(status));
}

static uint64_t checksum(Message data, nb::object variant_name)
{
    const gtcb_variant *variant = variant_named(variant_name);
    nb::gil_scoped_release released;
    return gtcb_checksum(variant, data.data(), data.size());
}

// -- block filter ----------------------------------------------------------------------------------

template <class Array> static auto vector_pointer(const Array &array, const ReadArray &like, const char *what)
{
    if (array.ndim() != 1 || array.size() != like.size() || array.dtype() != like.dtype())
        throw nb::value_error((std::string(what) + ": all arrays are [n], of one length and one dtype").c_str());
    return array.data();
}

static gtcb_block_filter filter_of(const ReadArray &in, double momentum, double lr, bool nesterov)
{
    const bool single = is_dtype(in, nb::dlpack::dtype_code::Float, 32);
    if (!single && !is_dtype(in, nb::dlpack::dtype_code::Float, 64))
        throw nb::type_error("the vectors of a block filter are float32 or float64");
    return {single ? GTCB_F32 : GTCB_F64, in.size(), momentum, lr, nesterov};
}

static void block_update(ReadArray block_delta, WriteArray update, WriteArray params, WriteArray start, double momentum, double lr,
                         bool nesterov, size_t threads)
{
    const gtcb_executor *executor = executor_with(threads);
    const gtcb_block_filter filter = filter_of(block_delta, momentum, lr, nesterov);
    void *const delta = vector_pointer(update, block_delta, "block_update");
    void *const w = vector_pointer(params, block_delta, "params"), *const out = vector_pointer(start, block_delta, "start");
    nb::gil_scoped_release released;
    check(gtcb_block_update(&filter, block_delta.data(), delta, w, out, executor));
}

static void local_delta(ReadArray model, ReadArray update, ReadArray params, WriteArray out, double momentum, bool nesterov,
                        size_t threads)
{
    const gtcb_executor *executor = executor_with(threads);
    const gtcb_block_filter filter = filter_of(model, momentum, 0, nesterov);
    const void *const delta = vector_pointer(update, model, "block_update"), *const w = vector_pointer(params, model, "params");
    void *const found = vector_pointer(out, model, "out");
    nb::gil_scoped_release released;
    check(gtcb_local_delta(&filter, model.data(), delta, w, found, executor));
}

static nb::list variants()
{
    nb::list list;
    for (size_t i = 0; i < gtcb_variant_count(); i++) {
        const gtcb_variant *v = gtcb_variant_at(i);
        list.append(nb::make_tuple(gtcb_variant_name(v), gtcb_variant_supported(v)));
    }
    return list;
}

void bind_codec(nb::module_ &m)
{
    using namespace nb::literals;
    m.def("encode", encode, "segments"_a, "dtype"_a, "residual_in"_a.noconvert(), "residual_out"_a.noconvert(), "threshold"_a,
          "max_sent"_a.none() = nb::none(), "sequence"_a = 0, "bucket"_a = 0, "sender"_a = 0, "variant"_a.none() = nb::none(),
          "threads"_a = 1);
    m.def("raw", raw, "array"_a.noconvert(), "weight"_a = 1, "sequence"_a = 0, "bucket"_a = 0, "sender"_a = 0,
          "variant"_a.none() = nb::none());
    m.def("read_header", [](Message message) { return header_dict(header_of(message)); }, "message"_a.noconvert());
    m.def("validate", validate, "message"_a.noconvert(), "variant"_a.none() = nb::none());
    m.def("decode_add", decode_add, "messages"_a, "dense"_a.noconvert(), "variant"_a.none() = nb::none(), "threads"_a = 1);
    m.def("bound", gtcb_bound, "elements"_a, "sent"_a);
    m.def("max_sent", gtcb_max_sent, "elements"_a, "cap_bytes"_a);
    m.def("message_capacity", gtcb_message_capacity, "elements"_a);
    m.def("checksum", checksum, "data"_a.noconvert(), "variant"_a.none() = nb::none());
    m.def("block_update", block_update, "block_delta"_a.noconvert(), "block_update"_a.noconvert(), "params"_a.noconvert(),
          "start"_a.noconvert(), "momentum"_a, "lr"_a, "nesterov"_a, "threads"_a = 1);
    m.def("local_delta", local_delta, "model"_a.noconvert(), "block_update"_a.noconvert(), "params"_a.noconvert(),
          "out"_a.noconvert(), "momentum"_a, "nesterov"_a, "threads"_a = 1);
    m.def("variants", variants);
    m.def("best_variant", [] { return gtcb_variant_name(gtcb_variant_best()); });
}
