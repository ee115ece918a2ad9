// Engine, Exchange and Ticket for gtcbmuf/exchange.py, which gives them their Python face.
#include "binding/binding.h"

#include <cstring>
#include <list>

#include "exchange/exchange.h"

static const double SIGNAL_SECONDS = 0.1;      // a wait looks for Ctrl-C so often

struct Engine {
    gtcb_engine *engine = nullptr;
    bool leaked = false;                       // an exchange had to be left alone, and it needs the engine

    Engine(const std::string &path, uint64_t byte, uint64_t comm, int size, int rank, const std::string &version,
           nb::object variant, size_t threads, bool progress_thread, size_t piece_bytes, size_t direct_bytes,
           size_t ring_bytes)
    {
        gtcb_engine_settings settings = {};
        char text[1024] = "";
        settings.variant = variant_named(variant);
        settings.threads = threads;
        settings.progress_thread = progress_thread;
        settings.piece_bytes = piece_bytes;
        settings.direct_bytes = direct_bytes;
        settings.ring_bytes = ring_bytes;
        gtcb_status status = gtcb_mpi_lookup(path.c_str(), (gtcb_handle) byte, &settings.mpi, text, sizeof text);
        if (!status)
            status = gtcb_mpi_self_test(&settings.mpi, (gtcb_handle) comm, size, rank, version.c_str(), text, sizeof text);
        if (status)
            throw Failure(status, text);
        check(gtcb_engine_open(&settings, &engine));
    }
    Engine(const Engine &) = delete;

    void close()
    {
        nb::gil_scoped_release released;
        gtcb_engine_close(engine);
    }

    ~Engine()
    {
        if (!engine)
            return;
        close();
        if (!leaked)
            gtcb_engine_free(engine);
    }
};

// An operation and what it reads and writes.
struct Flight {
    gtcb_op *op = nullptr;
    std::vector<ReadArray> read;
    std::vector<WriteArray> write;
    nb::object direct;                         // what owns the memory of a device that MPI uses
};

struct Exchange {
    nb::object engine;                         // kept alive
    gtcb_exchange *exchange = nullptr;
    bool closed = false, clean = true;
    std::vector<WriteArray> windows;
    std::list<Flight> orphans;                 // of tickets that were dropped before they were done

    Exchange(nb::object owner, uint64_t comm, const std::vector<uint32_t> &hosts) : engine(owner)
    {
        check(gtcb_exchange_open(nb::cast<Engine &>(owner).engine, (gtcb_handle) comm, hosts.data(), &exchange));
    }
    Exchange(const Exchange &) = delete;

    bool close()
    {
        if (!closed) {
            nb::gil_scoped_release released;
            clean = gtcb_exchange_close(exchange);
        }
        closed = true;
        return clean;
    }

    void sweep()
    {
        for (auto flight = orphans.begin(); flight != orphans.end();)
            flight = gtcb_op_release(flight->op) ? orphans.erase(flight) : std::next(flight);
    }

    ~Exchange()
    {
        if (!exchange)
            return;
        close();
        sweep();
        for (Flight &flight : orphans)         // MPI may still write there: never to be freed
            new Flight(std::move(flight));
        if (clean && orphans.empty())
            gtcb_exchange_free(exchange);
        else
            nb::cast<Engine &>(engine).leaked = true;
    }
};

struct Ticket {
    nb::object owner;                          // the Exchange
    Flight flight;

    Ticket(nb::object o, Flight &&f) : owner(std::move(o)), flight(std::move(f)) {}
    Ticket(Ticket &&other) noexcept : owner(std::move(other.owner)), flight(std::move(other.flight)) { other.flight.op = nullptr; }

    ~Ticket()
    {
        if (flight.op && !gtcb_op_release(flight.op))
            nb::cast<Exchange &>(owner).orphans.push_back(std::move(flight));
    }

    // True if it is done within so many seconds.
    bool wait(double seconds)
    {
        for (double left = seconds;; left -= SIGNAL_SECONDS) {
            double slice = left < SIGNAL_SECONDS ? left : SIGNAL_SECONDS;
            bool done;
            {
                nb::gil_scoped_release released;
                done = gtcb_op_wait(flight.op, slice);
            }
            if (done || left <= SIGNAL_SECONDS)
                return done;
            if (PyErr_CheckSignals() != 0)
                throw nb::python_error();
        }
    }

    uint32_t size() const { return gtcb_exchange_size(nb::cast<Exchange &>(owner).exchange); }

    void done() const
    {
        if (!gtcb_op_done(flight.op))
            throw std::runtime_error("the operation is not done: wait for it first");
    }
};

static nb::object failure_dict(const gtcb_failure &failure)
{
    if (!failure.status)
        return nb::none();
    nb::dict d;
    d["status"] = (int) failure.status;
    d["rank"] = failure.rank;
    d["bucket"] = failure.bucket;
    d["index"] = failure.index;
    d["sequence"] = failure.sequence;
    d["posts_differ"] = failure.posts_differ;
    d["text"] = nb::str(failure.text);
    return d;
}

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

// `segments` must live as long as the job.
static gtcb_encode_job job_of(uint32_t bucket, nb::handle segment_list, const std::string &dtype_name, const ReadArray &residual_in,
                              const WriteArray &residual_out, float threshold, nb::object max_sent, Flight &flight,
                              std::vector<gtcb_segment> &segments)
{
    gtcb_encode_job job = {};
    job.dtype = dtype_named(dtype_name);
    flight.read = read_arrays(segment_list, "segments");
    segments = segments_of(flight.read, job.dtype);
    job.segments = segments.data();
    job.segment_count = segments.size();
    job.elements = total(segments);
    set_residuals(job, flight, residual_in, residual_out, threshold, "residual");
    check_overlaps(segments, job.dtype, job.residual_in, job.residual_out, job.elements);
    job.max_sent = max_sent.is_none() ? GTCB_NO_CAP : nb::cast<uint64_t>(max_sent);
    job.bucket = bucket;
    return job;
}

static Ticket post_encode(nb::handle_t<Exchange> self, uint32_t bucket, nb::handle segment_list, const std::string &dtype_name,
                          ReadArray residual_in, WriteArray residual_out, float threshold, nb::object max_sent)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    std::vector<gtcb_segment> segments;
    gtcb_encode_job job = job_of(bucket, segment_list, dtype_name, residual_in, residual_out, threshold, max_sent, flight, segments);
    gtcb_status status = gtcb_post_encode(exchange.exchange, &job, &flight.op);
    return ticket(self, status, std::move(flight));
}

static Ticket post_owners(nb::handle_t<Exchange> self, uint32_t bucket, nb::handle segment_list, const std::string &dtype_name,
                          ReadArray residual_in, WriteArray residual_out, float threshold, ReadArray second_in, WriteArray second_out,
                          float second_threshold, nb::object max_sent)
{
    Exchange &exchange = nb::cast<Exchange &>(self);
    exchange.sweep();
    Flight flight;
    std::vector<gtcb_segment> segments;
    gtcb_encode_job job = job_of(bucket, segment_list, dtype_name, residual_in, residual_out, threshold, max_sent, flight, segments);
    gtcb_encode_job second = {};
    second.elements = gtcb_exchange_shard(exchange.exchange, job.elements);
    set_residuals(second, flight, second_in, second_out, second_threshold, "second");
    gtcb_status status = gtcb_post_owners(exchange.exchange, &job, &second, &flight.op);
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

using Address = uintptr_t;

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

// A view of what a rank sent; it keeps the ticket, and with it the buffers, alive.
static ByteArray body(nb::handle_t<Ticket> self, uint32_t rank)
{
    Ticket &t = nb::cast<Ticket &>(self);
    t.done();
    if (rank >= t.size())
        throw nb::index_error("no such rank");
    size_t bytes = 0;
    const void *data = gtcb_op_body(t.flight.op, rank, &bytes);
    static uint8_t nothing;
    return ByteArray(bytes ? (void *) data : &nothing, {bytes}, self);
}

// What followed a rank's header: a view if it lies on the host, its address if on the device; None: nothing.
static nb::object following(nb::handle_t<Ticket> self, uint32_t rank)
{
    Ticket &t = nb::cast<Ticket &>(self);
    t.done();
    if (rank >= t.size())
        throw nb::index_error("no such rank");
    size_t bytes = 0;
    bool on_host = false;
    const void *data = gtcb_op_following(t.flight.op, rank, &bytes, &on_host);
    if (!data)
        return nb::none();
    return on_host ? nb::cast(ByteArray((void *) data, {bytes}, self)) : nb::cast((Address) data);
}

static void decode_mean(Ticket &t, nb::handle list, float divisor)
{
    t.done();
    const std::vector<WriteArray> arrays = write_arrays(list, "targets");
    std::vector<gtcb_target> targets;
    for (const WriteArray &array : arrays)
        targets.push_back({residual_pointer(array, array.size(), "a target"), array.size()});
    gtcb_status status;
    {
        nb::gil_scoped_release released;
        status = gtcb_op_decode_mean(t.flight.op, targets.data(), targets.size(), divisor);
    }
    if (status == GTCB_BAD_ARGUMENT)
        throw nb::value_error("decode_mean needs float32 arrays with the bucket's elements between them, a divisor above 0 and a "
                              "successful post_encode or post_owners");
    check(status);
}

static nb::list late(Ticket &t)
{
    nb::list ranks;
    for (uint32_t r = 0; r < t.size(); r++)
        if (gtcb_op_is_late(t.flight.op, r))
            ranks.append(r);
    return ranks;
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

static void bind_ticket(nb::module_ &m)
{
    using namespace nb::literals;
    nb::class_<Ticket>(m, "Ticket")
        .def("wait", &Ticket::wait, "seconds"_a)
        .def("give_up", [](Ticket &t, double waited) {
            nb::gil_scoped_release released;
            gtcb_op_give_up(t.flight.op, waited);
        }, "waited"_a)
        .def("waits_for", [](Ticket &t, double waited) {
            gtcb_failure failure;
            {
                nb::gil_scoped_release released;
                gtcb_op_waits_for(t.flight.op, waited, &failure);
            }
            return failure_dict(failure);
        }, "waited"_a)
        .def("failure", [](Ticket &t) { t.done(); return failure_dict(*gtcb_op_failure(t.flight.op)); })
        .def("late", late)
        .def("header", [](Ticket &t, uint32_t rank) {
            t.done();
            if (rank >= t.size())
                throw nb::index_error("no such rank");
            return nb::bytes((const char *) gtcb_op_header(t.flight.op, rank), GTCB_HEADER_BYTES);
        }, "rank"_a)
        .def("body", body, "rank"_a)
        .def("following", following, "rank"_a)
        .def("decode_mean", decode_mean, "targets"_a, "divisor"_a)
        .def_prop_ro("times", [](Ticket &t) {
            t.done();
            gtcb_times at = gtcb_op_times(t.flight.op);
            return nb::make_tuple(at.posted, at.begun, at.announced, at.done);
        })
        .def_prop_ro("is_done", [](Ticket &t) { return gtcb_op_done(t.flight.op); })
        .def_prop_ro("sequence", [](Ticket &t) { return gtcb_op_sequence(t.flight.op); })
        .def_prop_ro("bytes_sent", [](Ticket &t) { t.done(); return gtcb_op_bytes_sent(t.flight.op); });
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
             "threshold"_a, "max_sent"_a.none())
        .def("post_owners", post_owners, "bucket"_a, "segments"_a, "dtype"_a, "residual_in"_a.noconvert(), "residual_out"_a.noconvert(),
             "threshold"_a, "second_in"_a.noconvert(), "second_out"_a.noconvert(), "second_threshold"_a, "max_sent"_a.none())
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
