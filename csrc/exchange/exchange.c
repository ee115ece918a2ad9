/* One communicator: its beginning and end, its first failure, its counters. */
#include <stdlib.h>

#include "exchange/internal.h"

gtcb_status gtcb_exchange_open(gtcb_engine *engine, gtcb_handle comm, const uint32_t *hosts, gtcb_exchange **out)
{
    const gtcb_mpi *mpi = &engine->settings.mpi;
    int rank = -1, size = -1;
    if (mpi->comm_rank(comm, &rank) || mpi->comm_size(comm, &size) || rank < 0 || rank >= size)
        return GTCB_MPI_ERROR;
    gtcb_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return GTCB_NO_MEMORY;
    x->engine = engine;
    x->comm = comm;
    x->rank = (uint32_t)rank;
    x->size = (uint32_t)size;
    gtcb_status status = gtcb_ring_open(x, hosts);
    if (!status)
        status = gtcb_rounds_open(x, hosts);
    if (!status)
        status = gtcb_batch_init(&x->farewells, mpi, comm, 1, GTCB_HEADER_BYTES);
    if (!status)
        status = gtcb_batch_init(&x->heard, mpi, comm, 1, GTCB_HEADER_BYTES);
    if (!status)
        status = gtcb_mail_open(x);
    if (status) {
        gtcb_exchange_free(x);
        return status;
    }
    pthread_mutex_lock(&engine->drive);
    if (engine->stopped)
        status = GTCB_CLOSED;
    x->next = engine->exchanges;
    engine->exchanges = x;
    pthread_mutex_unlock(&engine->drive);
    if (status) {
        gtcb_exchange_close(x);
        gtcb_exchange_free(x);
        return status;
    }
    *out = x;
    return GTCB_OK;
}

/* Ends everything at once, with `drive` held. No farewell: MPI may be on its way out. */
void gtcb_exchange_stop(gtcb_exchange *x, const gtcb_failure *failure)
{
    pthread_mutex_lock(&x->engine->lock);
    if (!x->failure.status)
        x->failure = *failure;
    gtcb_op *queued = x->queue;
    x->queue = NULL;
    pthread_mutex_unlock(&x->engine->lock);
    x->failed = true;
    gtcb_op *lists[] = {x->active, queued};
    x->active = NULL;
    x->active_count = 0;
    for (size_t i = 0; i < 2; i++)
        for (gtcb_op *op = lists[i], *next; op; op = next) {
            next = op->next;
            if (i == 1)
                op->unsent = true;
            gtcb_op_fail(op, failure->status, failure->rank, "%s", failure->text);
            gtcb_op_finish(op);
        }
}

bool gtcb_exchange_close(gtcb_exchange *x)
{
    gtcb_engine *engine = x->engine;
    gtcb_failure failure = {.status = GTCB_CLOSED, .text = "the exchange was closed while operations were in flight"};
    pthread_mutex_lock(&engine->drive);
    gtcb_exchange_stop(x, &failure);
    size_t finished;               /* farewells are short, and done as soon as MPI looks at them */
    for (int i = 0; i < 1000 && !engine->stopped && (x->farewells.count || x->heard.count); i++) {
        gtcb_batch_poll(&x->farewells, &finished);
        gtcb_batch_poll(&x->heard, &finished);
    }
    gtcb_exchange **link = &engine->exchanges;
    while (*link && *link != x)
        link = &(*link)->next;
    if (*link)
        *link = x->next;
    bool clean = !x->abandoned && x->farewells.count == 0 && x->heard.count == 0 && gtcb_mail_is_idle(x);
    pthread_mutex_unlock(&engine->drive);
    return clean;
}

void gtcb_exchange_free(gtcb_exchange *x)
{
    for (gtcb_op *op = x->idle, *next; op; op = next) {
        next = op->next;
        gtcb_op_destroy(op);
    }
    gtcb_batch_free(&x->farewells);
    gtcb_batch_free(&x->heard);
    gtcb_mail_free(x);
    gtcb_window_free(x);
    free(x->ring);
    free(x->rounds);
    free(x);
}

uint32_t gtcb_exchange_rank(const gtcb_exchange *x) { return x->rank; }
uint32_t gtcb_exchange_size(const gtcb_exchange *x) { return x->size; }
uint64_t gtcb_exchange_shard(const gtcb_exchange *x, uint64_t elements) { return gtcb_shard_of(elements, x->size, x->rank).count; }
void gtcb_exchange_corrupt_next(gtcb_exchange *x) { atomic_store(&x->corrupt_next, true); }

uint64_t gtcb_first_not_begun(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    uint64_t sequence = x->queue ? x->queue->sequence : x->next_sequence;
    pthread_mutex_unlock(&x->engine->lock);
    return sequence;
}

uint64_t gtcb_exchange_sequence(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    uint64_t sequence = x->next_sequence;
    pthread_mutex_unlock(&x->engine->lock);
    return sequence;
}

gtcb_status gtcb_exchange_set_sequence(gtcb_exchange *x, uint64_t sequence)
{
    gtcb_status status = GTCB_BAD_ARGUMENT;
    pthread_mutex_lock(&x->engine->drive);
    pthread_mutex_lock(&x->engine->lock);
    if (!x->queue && !x->active && sequence >= x->next_sequence) {
        x->next_sequence = sequence;
        status = GTCB_OK;
    }
    pthread_mutex_unlock(&x->engine->lock);
    pthread_mutex_unlock(&x->engine->drive);
    return status;
}

gtcb_counters gtcb_exchange_counters(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    gtcb_counters counters = x->counters;
    pthread_mutex_unlock(&x->engine->lock);
    return counters;
}

gtcb_failure gtcb_exchange_failure(gtcb_exchange *x)
{
    pthread_mutex_lock(&x->engine->lock);
    gtcb_failure failure = x->failure;
    pthread_mutex_unlock(&x->engine->lock);
    return failure;
}
