// An engine, its exchanges, and what their operations keep alive; the types of exchange.cpp and ticket.cpp.
#pragma once

#include <list>

#include "binding/binding.h"
#include "exchange/exchange.h"

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

    bool wait(double seconds);                 // true if it is done within so many seconds
    uint32_t size() const { return gtcb_exchange_size(nb::cast<Exchange &>(owner).exchange); }

    void done() const
    {
        if (!gtcb_op_done(flight.op))
            throw std::runtime_error("the operation is not done: wait for it first");
    }
};

nb::object failure_dict(const gtcb_failure &failure);      // None: there was none

void bind_ticket(nb::module_ &m);
