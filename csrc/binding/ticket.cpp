// Ticket for gtcbmuf/tickets.py: waiting, and what an operation has brought.
#include "binding/exchange.h"

static const double SIGNAL_SECONDS = 0.1;      // a wait looks for Ctrl-C so often

bool Ticket::wait(double seconds)
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

nb::object failure_dict(const gtcb_failure &failure)
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
    gtcb_dtype dtype;
    const std::vector<gtcb_target> targets = targets_of(arrays, dtype);
    gtcb_status status;
    {
        nb::gil_scoped_release released;
        const gtcb_mean_into into = {targets.data(), targets.size(), dtype, divisor};
        status = gtcb_op_decode_mean(t.flight.op, &into);
    }
    if (status == GTCB_BAD_ARGUMENT)
        throw nb::value_error("decode_mean needs arrays with the bucket's elements between them, a divisor above 0 and a "
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

void bind_ticket(nb::module_ &m)
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
            gtcb_header header;
            check(gtcb_read_header(gtcb_op_header(t.flight.op, rank), &header));
            return header_dict(header);
        }, "rank"_a)
        .def("body", body, "rank"_a)
        .def("following", following, "rank"_a)
        .def("decode_mean", decode_mean, "targets"_a, "divisor"_a)
        .def_prop_ro("times", [](Ticket &t) {
            t.done();
            gtcb_times at = gtcb_op_times(t.flight.op);
            return nb::make_tuple(at.posted, at.begun, at.announced, at.arrived, at.done);
        })
        .def_prop_ro("is_done", [](Ticket &t) { return gtcb_op_done(t.flight.op); })
        .def_prop_ro("sequence", [](Ticket &t) { return gtcb_op_sequence(t.flight.op); })
        .def_prop_ro("bytes_sent", [](Ticket &t) { t.done(); return gtcb_op_bytes_sent(t.flight.op); });
}
