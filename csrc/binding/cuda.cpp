// csrc/cuda for Python (gtcbmuf/backends/cuda.py), which has checked the arrays: they come as addresses. Nothing here
// where CUDA was not built.
#include "binding/binding.h"

#ifdef GTCB_CUDA
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "cuda/cuda.h"
#include "cuda/device.h"

static void check_cuda(gtcb_status status)
{
    if (status == GTCB_CUDA_ERROR || status == GTCB_NO_MEMORY)
        throw Failure(status, gtcb_cuda_error_text());
    check(status);
}

// Makes a device the one that CUDA works with, while it lives. Where it is already it stays: to set a device makes a context there.
struct OnDevice {
    int device, previous = 0;
    explicit OnDevice(int d) : device(d) { check_cuda(gtcb_cuda_enter(device, &previous)); }
    ~OnDevice()
    {
        if (previous != device)
            gtcb_cuda_leave(previous);
    }
    OnDevice(const OnDevice &) = delete;
};

struct DeviceMemory {
    int device;
    size_t bytes;
    void *memory = nullptr;
    DeviceMemory(int d, size_t b) : device(d), bytes(b)
    {
        OnDevice on(device);
        check_cuda(gtcb_cuda_allocate(bytes, &memory));
    }
    ~DeviceMemory() { gtcb_cuda_free(memory); }
    DeviceMemory(const DeviceMemory &) = delete;
};

struct PinnedMemory {
    size_t bytes;
    void *memory = nullptr;
    PinnedMemory(int device, size_t b) : bytes(b)
    {
        OnDevice on(device);                   // in its context, not in one of the current device
        check_cuda(gtcb_cuda_allocate_pinned(bytes, &memory));
    }
    ~PinnedMemory() { gtcb_cuda_free_pinned(memory); }
    PinnedMemory(const PinnedMemory &) = delete;
};

struct Event {
    int device;
    void *event = nullptr;
    explicit Event(int d) : device(d)
    {
        OnDevice on(device);
        check_cuda(gtcb_cuda_event_create(&event));
    }
    void record(Address stream) const
    {
        OnDevice on(device);                   // of which stream 0 is then
        check_cuda(gtcb_cuda_event_record(event, (void *) stream));
    }
    ~Event() { gtcb_cuda_event_destroy(event); }
    Event(const Event &) = delete;
};

static nb::dict facts(int device)
{
    gtcb_cuda_facts found = {};
    check_cuda(gtcb_cuda_device_facts(device, &found));
    nb::dict d;
    d["name"] = found.name;
    d["uuid"] = found.uuid;
    d["capability"] = nb::make_tuple(found.major, found.minor);
    d["multiprocessors"] = found.multiprocessors;
    d["bytes"] = found.bytes;
    return d;
}

static gtcb_cuda_launch launch_on(Address stream, unsigned blocks) { return {(void *) stream, blocks}; }

static void encode(int device, const std::vector<std::pair<Address, size_t>> &segments, const std::string &dtype, uint64_t elements,
                   Address residual_in, Address residual_out, float threshold, std::optional<uint64_t> max_sent, uint64_t sequence,
                   uint32_t bucket, uint32_t sender, Address scratch, Address message, Address stream, unsigned blocks)
{
    std::vector<gtcb_segment> table;
    for (const auto &[address, count] : segments)
        table.push_back({(const void *) address, count});
    gtcb_encode_job job = {};
    job.segments = table.data();
    job.segment_count = table.size();
    job.dtype = dtype_named(dtype);
    job.elements = elements;
    job.residual_in = (const float *) residual_in;
    job.residual_out = (float *) residual_out;
    job.threshold = threshold;
    job.max_sent = max_sent.value_or(GTCB_NO_CAP);
    job.sequence = sequence;
    job.bucket = bucket;
    job.sender = sender;
    job.scratch = (uint32_t *) scratch;
    OnDevice on(device);
    const gtcb_cuda_launch launch = launch_on(stream, blocks);
    check_cuda(gtcb_cuda_encode(&job, (void *) message, &launch));
}

// (header, address of the body)
using Messages = std::vector<std::pair<nb::bytes, Address>>;

static std::vector<gtcb_cuda_message> messages_of(const Messages &messages)
{
    std::vector<gtcb_cuda_message> table;
    for (const auto &[header, body] : messages) {
        if (header.size() != GTCB_HEADER_BYTES)
            throw nb::value_error("a header has 64 bytes");
        table.push_back({header.c_str(), (const void *) body});
    }
    return table;
}

static size_t decode_scratch_bytes(const Messages &messages, uint64_t elements)
{
    const std::vector<gtcb_cuda_message> table = messages_of(messages);
    return gtcb_cuda_decode_scratch_bytes(table.data(), table.size(), elements);
}

static void validate(int device, const Messages &messages, uint64_t elements, Address verdicts, Address scratch, Address stream,
                     unsigned blocks)
{
    const std::vector<gtcb_cuda_message> table = messages_of(messages);
    OnDevice on(device);
    const gtcb_cuda_launch launch = launch_on(stream, blocks);
    check_cuda(gtcb_cuda_validate(table.data(), table.size(), elements, (uint32_t *) verdicts, (void *) scratch, &launch));
}

static void decode_add(int device, const Messages &messages, Address dense, uint64_t elements, Address verdicts, Address scratch,
                       Address stream, unsigned blocks)
{
    const std::vector<gtcb_cuda_message> table = messages_of(messages);
    OnDevice on(device);
    const gtcb_cuda_launch launch = launch_on(stream, blocks);
    check_cuda(gtcb_cuda_decode_add(table.data(), table.size(), (float *) dense, elements, (const uint32_t *) verdicts,
                                    (void *) scratch, &launch));
}

static void decode_mean(int device, const Messages &messages, Address mean, uint64_t elements, float divisor, Address verdicts,
                        Address scratch, Address stream, unsigned blocks)
{
    const std::vector<gtcb_cuda_message> table = messages_of(messages);
    OnDevice on(device);
    const gtcb_cuda_launch launch = launch_on(stream, blocks);
    check_cuda(gtcb_cuda_decode_mean(table.data(), table.size(), (float *) mean, elements, divisor, (const uint32_t *) verdicts,
                                     (void *) scratch, &launch));
}

static void block_update(int device, const std::string &dtype, uint64_t elements, Address block_delta, Address update,
                         Address params, Address start, double momentum, double lr, bool nesterov, Address stream, unsigned blocks)
{
    const gtcb_cuda_block block = {dtype_named(dtype), elements, (const void *) block_delta, (void *) update, (void *) params,
                                   (void *) start, momentum, lr, nesterov};
    OnDevice on(device);
    const gtcb_cuda_launch launch = launch_on(stream, blocks);
    check_cuda(gtcb_cuda_block_update(&block, &launch));
}

// What a DLPack capsule says: (address, shape, strides, type code, bits, device type, device). The array must outlive it.
static nb::tuple look_into(nb::ndarray<nb::ro> array)
{
    nb::list shape, strides;
    for (size_t i = 0; i < array.ndim(); i++) {
        shape.append(array.shape(i));
        strides.append(array.stride(i));
    }
    const nb::dlpack::dtype d = array.dtype();
    return nb::make_tuple((Address) array.data(), nb::tuple(shape), nb::tuple(strides), (int) d.code, (int) d.bits * d.lanes,
                          (int) array.device_type(), (int) array.device_id());
}

void bind_cuda(nb::module_ &m)
{
    m.attr("USE_DEVICE") = (Address) gtcb_cuda_use;         // for gtcb_direct
    m.def("devices", [] { return gtcb_cuda_devices(); });
    m.def("error_text", [] { return gtcb_cuda_error_text(); });
    m.def("facts", facts);
    m.def("device_of", [](Address pointer) { return gtcb_cuda_device_of((const void *) pointer); });
    m.def("look_into", look_into);
    m.def("scratch_bytes", gtcb_cuda_scratch_bytes);
    m.def("message_bytes", gtcb_cuda_message_bytes);
    m.def("decode_scratch_bytes", decode_scratch_bytes);
    m.def("encode", encode);
    m.def("validate", validate);
    m.def("decode_add", decode_add);
    m.def("decode_mean", decode_mean);
    m.def("block_update", block_update);
    m.def("copy", [](int device, Address to, Address from, size_t bytes, Address stream) {
        OnDevice on(device);
        check_cuda(gtcb_cuda_copy((void *) to, (const void *) from, bytes, (void *) stream));
    });
    m.def("zero", [](int device, Address memory, size_t bytes, Address stream) {
        OnDevice on(device);
        check_cuda(gtcb_cuda_zero((void *) memory, bytes, (void *) stream));
    });
    m.def("synchronize", [](int device, Address stream) {
        OnDevice on(device);
        gtcb_status status;
        {
            nb::gil_scoped_release released;
            status = gtcb_cuda_synchronize((void *) stream);
        }
        check_cuda(status);
    });
    nb::class_<DeviceMemory>(m, "DeviceMemory")
        .def(nb::init<int, size_t>())
        .def_ro("device", &DeviceMemory::device)
        .def_ro("bytes", &DeviceMemory::bytes)
        .def_prop_ro("address", [](DeviceMemory &memory) { return (Address) memory.memory; });
    nb::class_<PinnedMemory>(m, "PinnedMemory")
        .def(nb::init<int, size_t>())
        .def_prop_ro("address", [](PinnedMemory &memory) { return (Address) memory.memory; })
        .def_prop_ro("array", [](nb::handle_t<PinnedMemory> self) {
            PinnedMemory &memory = nb::cast<PinnedMemory &>(self);
            return ByteArray((uint8_t *) memory.memory, {memory.bytes}, self);
        });
    nb::class_<Event>(m, "Event")
        .def(nb::init<int>())
        .def("record", &Event::record)
        .def("wait", [](Event &event) {
            gtcb_status status;
            {
                nb::gil_scoped_release released;
                status = gtcb_cuda_event_wait(event.event);
            }
            check_cuda(status);
        })
        .def("done", [](Event &event) {
            int done = 0;
            check_cuda(gtcb_cuda_event_done(event.event, &done));
            return done != 0;
        })
        .def("milliseconds_since", [](Event &end, Event &begin) {
            float milliseconds = 0;
            check_cuda(gtcb_cuda_event_elapsed(begin.event, end.event, &milliseconds));
            return milliseconds;
        });
}
#endif
