// gtcbmuf._core
#include "binding/binding.h"

#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include <unistd.h>

#include "transport/transport.h"

static nb::dict statuses()
{
    nb::dict d;
    const std::pair<const char *, gtcb_status> all[] = {
        {"OK", GTCB_OK}, {"BAD_ARGUMENT", GTCB_BAD_ARGUMENT}, {"TOO_SMALL", GTCB_TOO_SMALL}, {"TRUNCATED", GTCB_TRUNCATED},
        {"BAD_MAGIC", GTCB_BAD_MAGIC}, {"BAD_VERSION", GTCB_BAD_VERSION}, {"BAD_HEADER", GTCB_BAD_HEADER},
        {"BAD_CHECKSUM", GTCB_BAD_CHECKSUM}, {"BAD_BODY", GTCB_BAD_BODY}, {"MISMATCH", GTCB_MISMATCH},
        {"NON_FINITE", GTCB_NON_FINITE}, {"NO_MEMORY", GTCB_NO_MEMORY}, {"MPI_ERROR", GTCB_MPI_ERROR},
        {"DEADLINE", GTCB_DEADLINE}, {"CLOSED", GTCB_CLOSED}, {"CUDA_ERROR", GTCB_CUDA_ERROR}};
    for (const auto &[name, value] : all)
        d[name] = (int) value;
    return d;
}

// A thread that no end of the interpreter stops.
static void exit_after(double seconds)
{
    std::thread([seconds] {
        std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
        _exit(EXIT_SUCCESS);
    }).detach();
}

static struct { std::string path; double seconds; pid_t process; } finalize;

// When Python has ended, and before mpi4py, which registered earlier, finalizes MPI: it then finds that done. Not in a
// process that the program has forked.
static void finalize_within(std::string path, double seconds)
{
    finalize = {std::move(path), seconds, getpid()};
    Py_AtExit([] {
        if (getpid() == finalize.process)
            gtcb_mpi_finalize_within(finalize.path.c_str(), finalize.seconds);
    });
}

NB_MODULE(_core, m)
{
    m.doc() = "The compiled core of gtcbmuf: codec, engine, exchange. Use gtcbmuf.backends and gtcbmuf.exchange.";
    // Objects that live to the end of the process (a leaked exchange, say) are no bug of the user's.
    nb::set_leak_warnings(false);
    m.attr("STATUS") = statuses();
    nb::object error = nb::steal(PyErr_NewExceptionWithDoc("gtcbmuf._core.CodecError", "args: (status, text)",
                                                           PyExc_Exception, nullptr));
    m.attr("CodecError") = error;
    nb::register_exception_translator(
        [](const std::exception_ptr &p, void *type) {
            try {
                std::rethrow_exception(p);
            } catch (const Failure &failure) {
                PyErr_SetObject((PyObject *) type, nb::make_tuple((int) failure.status, failure.what()).ptr());
            }
        },
        error.ptr());
    bind_codec(m);
    bind_exchange(m);
    m.def("exit_after", &exit_after);
    m.def("finalize_within", &finalize_within);
#ifdef GTCB_CUDA
    nb::module_ cuda = m.def_submodule("cuda", "The codec for arrays on CUDA devices. Use gtcbmuf.backends.cuda.");
    bind_cuda(cuda);
#endif
}
