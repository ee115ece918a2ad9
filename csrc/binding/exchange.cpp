// Engine and Exchange for gtcbmuf/exchange.py, which gives them their Python face.
#include "binding/exchange.h"

static Ticket ticket(nb::handle_t<Exchange> self, gtcb_status status, Flight &&flight)
{
    if (status == GTCB_CLOSED) {
        gtcb_failure first = gtcb_exchange_failure(nb::cast<Exchange &>(self).exchange);
        throw Failure(status, first.text);
    }
    check(status);
    return Ticket(nb::borrow(self), std::move(flight));
}

// A job whose residuals are kept apart, for a step may be refused.
static void set_residuals(gtcb_encode_job &job, Flight &flight, const ReadArray &in, const WriteArray &out, float threshold,
                          const std::string &name)
{
    job.residual_in = residual_pointer(in, job.elements, (name + "_in").c_str());
    job.residual_out = residual_pointer(out, job.elements, (name + "_out").c_str());
    if (job.residual_in == job.residual_out && job.elements)
        throw nb::value_error((name + "_in and " + name + "_out are the same array; a step that is refused needs them apart").c_str());
    job.threshold = threshold;
    flight.read.push_back(in);
    flight.write.push_back(out);
}

// `segments` must live as long as the job. in_place: the mean will be written to them; then they come first in flight.write.
static gtcb_encode_job job_of(uint32_t bucket, nb::handle segment_list, bool in_place, const std::string &dtype_name,
                              const ReadArray &residual_in, const WriteArray &residual_out, float threshold, nb::object max_sent,
                              Flight &flight, std::vector<gtcb_segment> &segments)
{
    gtcb_encode_job job = {};
    job.dtype = dtype_named(dtype_name);
    if (in_place) {
        flight.write = write_arrays(segment_list, "segments");
        segments = segments_of(flight.write, job.dtype);
    } else {
        flight.read = read_arrays(segment_list, "segments");
        segments = segments_of(flight.read, job.dtype);
    }
    job.segments = segments.data();
    job.segment_count = segments.size();
    job.elements = total(segments);
    set_residuals(job, flight, residual_in, residual_out, threshold, "residual");
    check_overlaps(segments, job.dtype, job.residual_in, job.residual_out, job.elements);
    job.max_sent = max_sent.is_none() ? GTCB_NO_CAP : nb::cast<uint64_t>(max_sent);
    job.bucket = bucket;
    return job;
}

// Where the mean goes by itself; in_place: to the segments. `targets` must live until the operation is posted.
static const gtcb_mean_into *mean_into(nb::handle target_list, bool in_place, float divisor, const gtcb_encode_job &job, Flight &flight,
                                       std::vector<gtcb_target> &targets, gtcb_mean_into &into)
{
    if (target_list.is_none())
        return nullptr;
    gtcb_dtype dtype;
    const auto segments = flight.write.begin();
    const std::vector<WriteArray> arrays = in_place ? std::vector<WriteArray>(segments, segments + job.segment_count)
                                                    : write_arrays(target_list, "mean_into");
    targets = targets_of(arrays, dtype);
    std::vector<gtcb_segment> spans;
    for (const gtcb_target &target : targets)
        spans.push_back({target.data, target.count});
    if (total(spans) != job.elements || !(divisor > 0))
        throw nb::value_error("mean_into needs arrays with the bucket's elements between them, and a divisor above 0");
    check_overlaps(spans, dtype, job.residual_in, job.residual_out, job.elements);
    if (!in_place)
        flight.write.insert(flight.write.end(), arrays.begin(), arrays.end());
    into = {targets.data(), targets.size(), dtype, divisor};
    return &into;
}

static Ticket post_encode(nb::handle_t<Exchange> self, uint32_t bucket, nb::handle segment_list, const std::string &dtype_name,
                          ReadArray residual_in, WriteArray residual_out, float threshold, nb::object max_sent, nb::object target_list,
                          float divisor)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    const bool in_place = target_list.is(segment_list);
    std::vector<gtcb_segment> segments;
    gtcb_encode_job job = job_of(bucket, segment_list, in_place, dtype_name, residual_in, residual_out, threshold, max_sent, flight,
                                 segments);
    std::vector<gtcb_target> targets;
    gtcb_mean_into into;
    gtcb_status status = gtcb_post_encode(exchange.exchange, &job, mean_into(target_list, in_place, divisor, job, flight, targets, into),
                                          &flight.op);
    return ticket(self, status, std::move(flight));
}

static Ticket post_owners(nb::handle_t<Exchange> self, uint32_t bucket, nb::handle segment_list, const std::string &dtype_name,
                          ReadArray residual_in, WriteArray residual_out, float threshold, ReadArray second_in, WriteArray second_out,
                          float second_threshold, nb::object max_sent, nb::object target_list, float divisor)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    const bool in_place = target_list.is(segment_list);
    std::vector<gtcb_segment> segments;
    gtcb_encode_job job = job_of(bucket, segment_list, in_place, dtype_name, residual_in, residual_out, threshold, max_sent, flight,
                                 segments);
    gtcb_encode_job second = {};
    second.elements = gtcb_exchange_shard(exchange.exchange, job.elements);
    set_residuals(second, flight, second_in, second_out, second_threshold, "second");
    std::vector<gtcb_target> targets;
    gtcb_mean_into into;
    gtcb_status status = gtcb_post_owners(exchange.exchange, &job, &second,
                                          mean_into(target_list, in_place, divisor, job, flight, targets, into), &flight.op);
    return ticket(self, status, std::move(flight));
}

static Ticket post_allreduce(nb::handle_t<Exchange> self, WriteArray array, uint64_t weight, bool mean, uint32_t bucket)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    gtcb_status status = gtcb_post_allreduce(exchange.exchange, element_of(array.dtype()), array.data(), array.size(), weight, mean,
                                             bucket, &flight.op);
    flight.write.push_back(array);
    return ticket(self, status, std::move(flight));
}

static Ticket post_broadcast(nb::handle_t<Exchange> self, WriteArray array, uint32_t root, uint32_t bucket)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    gtcb_status status = gtcb_post_broadcast(exchange.exchange, element_of(array.dtype()), array.data(), array.size(), root, bucket,
                                             &flight.op);
    flight.write.push_back(array);
    return ticket(self, status, std::move(flight));
}

static Ticket post_allgather(nb::handle_t<Exchange> self, ReadArray array, uint32_t bucket)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    gtcb_status status = gtcb_post_allgather(exchange.exchange, element_of(array.dtype()), array.data(), array.size(), bucket,
                                             &flight.op);
    flight.read.push_back(array);
    return ticket(self, status, std::move(flight));
}

// `message` on the host, `whole` (the same) and `room` on a device, whose memory belongs to `owners`. use_device: of gtcb_direct.
static Ticket post_direct(nb::handle_t<Exchange> self, ReadArray message, Address whole, Address room, size_t room_bytes, int device,
                          Address use_device, nb::object owners, uint32_t bucket)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    const gtcb_direct direct = {(const uint8_t *) whole, (uint8_t *) room, room_bytes, (void (*)(int)) use_device, device};
    gtcb_status status = gtcb_post_direct(exchange.exchange, message.data(), message.size(), &direct, bucket, &flight.op);
    flight.read.push_back(message);
    flight.direct = owners;
    return ticket(self, status, std::move(flight));
}

// The windows stay as long as the exchange, and so as long as what has been received in them.
static void share(Exchange &x, nb::handle windows)
{
    std::vector<WriteArray> arrays;
    std::vector<uint8_t *> pointers;
    for (nb::handle window : windows) {
        arrays.push_back(nb::cast<WriteArray>(window, false));
        pointers.push_back((uint8_t *) arrays.back().data());
        if (arrays.back().dtype() != nb::dtype<uint8_t>() || arrays.back().size() != arrays.front().size())
            throw nb::value_error("windows are uint8 arrays of one length");
    }
    if (arrays.size() != gtcb_exchange_size(x.exchange))
        throw nb::value_error("a window of each rank is needed");
    check(gtcb_exchange_share(x.exchange, pointers.data(), arrays.front().size()));
    x.windows = std::move(arrays);
}

static nb::dict counters(Exchange &x)
{
    gtcb_counters c = gtcb_exchange_counters(x.exchange);
    nb::dict d;
    d["operations"] = c.operations;
    d["bytes_sent"] = c.bytes_sent;
    d["bytes_received"] = c.bytes_received;
    d["bytes_shared"] = c.bytes_shared;
    d["elements_sent"] = c.elements_sent;
    d["encode_seconds"] = c.encode_seconds;
    d["exchange_seconds"] = c.exchange_seconds;
    d["decode_seconds"] = c.decode_seconds;
    d["wait_seconds"] = c.wait_seconds;
    return d;
}

void bind_exchange(nb::module_ &m)
{
    using namespace nb::literals;
    m.def("mpi_is_cuda_aware", [](const std::string &path) { return gtcb_mpi_is_cuda_aware(path.c_str()); });
    m.attr("PIECE_BYTES") = (uint64_t) GTCB_PIECE_BYTES;
    nb::class_<Engine>(m, "Engine")
        .def(nb::init<const std::string &, uint64_t, uint64_t, int, int, const std::string &, nb::object, size_t, bool, size_t, size_t, size_t>(),
             "path"_a, "byte"_a, "comm"_a, "size"_a, "rank"_a, "version"_a, "variant"_a.none(), "threads"_a, "progress_thread"_a,
             "piece_bytes"_a, "direct_bytes"_a, "ring_bytes"_a)
        .def("close", &Engine::close)
        .def("progress", [](Engine &e) { nb::gil_scoped_release released; return gtcb_engine_progress(e.engine); })
        .def_prop_ro("variant", [](Engine &e) { return gtcb_variant_name(gtcb_engine_get_settings(e.engine)->variant); });
    nb::class_<Exchange>(m, "Exchange")
        .def(nb::init<nb::object, uint64_t, const std::vector<uint32_t> &>(), "engine"_a, "comm"_a, "hosts"_a)
        .def("close", &Exchange::close)
        .def("share", share, "windows"_a)
        .def("leave", [](Exchange &x, bool device_failed) {
            nb::gil_scoped_release released;
            gtcb_exchange_leave(x.exchange, device_failed ? GTCB_CUDA_ERROR : GTCB_CLOSED);
        })
        .def("post_encode", post_encode, "bucket"_a, "segments"_a, "dtype"_a, "residual_in"_a.noconvert(), "residual_out"_a.noconvert(),
             "threshold"_a, "max_sent"_a.none(), "mean_into"_a.none(), "divisor"_a)
        .def("post_owners", post_owners, "bucket"_a, "segments"_a, "dtype"_a, "residual_in"_a.noconvert(), "residual_out"_a.noconvert(),
             "threshold"_a, "second_in"_a.noconvert(), "second_out"_a.noconvert(), "second_threshold"_a, "max_sent"_a.none(),
             "mean_into"_a.none(), "divisor"_a)
        .def("post_allreduce", post_allreduce, "array"_a.noconvert(), "weight"_a, "mean"_a, "bucket"_a)
        .def("post_broadcast", post_broadcast, "array"_a.noconvert(), "root"_a, "bucket"_a)
        .def("post_allgather", post_allgather, "array"_a.noconvert(), "bucket"_a)
        .def("post_direct", post_direct, "message"_a.noconvert(), "whole"_a, "room"_a, "room_bytes"_a, "device"_a, "use_device"_a, "owners"_a,
             "bucket"_a)
        .def_prop_ro("short_bytes", [](Exchange &x) { return gtcb_exchange_short_bytes(x.exchange); })
        .def("failure", [](Exchange &x) { return failure_dict(gtcb_exchange_failure(x.exchange)); })
        .def("counters", counters)
        .def("corrupt_next", [](Exchange &x) { gtcb_exchange_corrupt_next(x.exchange); })
        .def_prop_rw("sequence", [](Exchange &x) { return gtcb_exchange_sequence(x.exchange); },
                     [](Exchange &x, uint64_t sequence) {
                         gtcb_status status;
                         {
                             nb::gil_scoped_release released;
                             status = gtcb_exchange_set_sequence(x.exchange, sequence);
                         }
                         if (status)
                             throw nb::value_error("sequence can only be set forward, and with nothing under way");
                     })
        .def_prop_ro("rank", [](Exchange &x) { return gtcb_exchange_rank(x.exchange); })
        .def_prop_ro("size", [](Exchange &x) { return gtcb_exchange_size(x.exchange); });
    bind_ticket(m);
}
